"""What became of a run's data, as tables to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from app.safe_markdown import printable
from lora.run_folder import DATA, RunFolder


@dataclass(frozen=True)
class DataTables:
    """What became of a run's data.

    Attributes:
        sources: rows of source, read, kept, dropped, cut (rows), tokens, learnt (share of tokens).
        lengths: rows of source, length ("65 to 128"), order, rows.
        dropped: rows of source, reason, rows.
    """

    sources: pd.DataFrame
    lengths: pd.DataFrame
    dropped: pd.DataFrame


def read_data(folder: Path) -> DataTables:
    """What a run's data.json says.

    Raises:
        ValueError: if it is missing or damaged, in one sentence.
    """
    try:
        reports = json.loads((folder / DATA).read_bytes())["sources"]
        return data_tables(reports, has_test_data(folder))
    except FileNotFoundError:
        raise ValueError(f"This run has no {DATA} yet.") from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ):
        raise ValueError(f"This run's {DATA} is damaged.") from None


def has_test_data(folder: Path) -> bool:
    """Whether the last of a run's data sets was read only to evaluate on."""
    try:
        return bool(RunFolder(folder, writes=False).saved_config().get("eval_data"))
    except ValueError:
        return False


def data_tables(reports: Sequence[Mapping[str, Any]], last_is_test: bool) -> DataTables:
    """The reports of the data sets, the ones of the same name numbered."""
    sources: list[tuple[Any, ...]] = []
    lengths: list[tuple[Any, ...]] = []
    dropped: list[tuple[Any, ...]] = []
    met: Counter[str] = Counter()
    for report in reports:
        name = printable(report["name"])
        if last_is_test and report is reports[-1]:
            name += ", held out"
        met[name] += 1
        name += f" ({met[name]})" if met[name] > 1 else ""
        read, kept, tokens = int(report["rows_read"]), int(report["kept"]), int(report["tokens"])
        learnt = int(report["target_tokens"]) / max(1, tokens)
        sources.append((name, read, kept, read - kept, int(report["cut"]), tokens, learnt))
        histogram, low = report["histogram"], 1
        for edge, count in zip(histogram["upper_edges"], histogram["counts"], strict=True):
            lengths.append((name, f"{low:,} to {int(edge):,}", int(edge), int(count)))
            low = int(edge) + 1
        for reason, entry in report["dropped"].items():
            dropped.append((name, printable(reason), int(entry["rows"])))
    source_columns = ["source", "read", "kept", "dropped", "cut", "tokens", "learnt"]
    return DataTables(
        pd.DataFrame(sources, columns=source_columns),
        pd.DataFrame(lengths, columns=["source", "length", "order", "rows"]),
        pd.DataFrame(dropped, columns=["source", "reason", "rows"]),
    )
