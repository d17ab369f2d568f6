"""What became of a data set's rows: counted, shown, and refused if too many were lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.conversations import NOT_A_CONVERSATION, NOTHING_LEFT

FIRST_EDGE = 64  # tokens; every further bin of the histogram is twice as wide
MOST_SHOWN = 5


@dataclass
class DataReport:
    """The counts of one data set, as they go into data.json.

    Attributes:
        name: of the source.
        revision: of the source.
        rows_read: how many rows its files have.
        kept: how many can be learnt from.
        dropped: by reason, how many "rows" were not kept and the numbers of the "first" few,
            counted from 1 over all files.
        cut: how many of those kept were longer than the maximum.
        tokens: in the rows kept, after the cut.
        target_tokens: how many of these are to be learnt.
        histogram: "upper_edges" of bins of lengths in tokens (a length on an edge belongs below
            it), and their "counts" of rows kept.
    """

    name: str
    revision: str | None
    rows_read: int = 0
    kept: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut: int = 0
    tokens: int = 0
    target_tokens: int = 0
    histogram: dict[str, list[int]] = field(
        default_factory=lambda: {"upper_edges": [], "counts": []}
    )

    @property
    def rows_dropped(self) -> int:
        """How many rows were not kept."""
        return self.rows_read - self.kept

    def drop(self, number: int, reason: str) -> None:
        """Counts the row of that number as dropped."""
        entry = self.dropped.setdefault(reason, {"rows": 0, "first": []})
        entry["rows"] += 1
        if len(entry["first"]) < MOST_SHOWN:
            entry["first"].append(number)

    def keep(self, length: int, targets: int, was_cut: bool) -> None:
        """Counts a row of so many tokens, so many of them targets, as kept."""
        self.kept += 1
        self.cut += was_cut
        self.tokens += length
        self.target_tokens += targets
        edges, counts = self.histogram["upper_edges"], self.histogram["counts"]
        while not edges or edges[-1] < length:
            edges.append(edges[-1] * 2 if edges else FIRST_EDGE)
            counts.append(0)
        counts[next(bin for bin, edge in enumerate(edges) if length <= edge)] += 1


def check_share(max_dropped: float) -> None:
    """Refuses a --max-dropped that is no share. Raises ValueError."""
    if not 0 <= max_dropped <= 1:
        raise ValueError(f"--max-dropped is {max_dropped}; it is a share of rows, from 0 to 1")


def check_report(reports: Sequence[DataReport], strict: bool, max_dropped: float) -> None:
    """Refuses data of which too much was dropped.

    Args:
        reports: one a data set.
        strict: any dropped row is too much (--strict-data).
        max_dropped: the largest share of each data set's rows that may be dropped (--max-dropped).

    Raises:
        ValueError: if it was, or if a data set has no usable row.
    """
    check_share(max_dropped)
    for report in reports:
        if report.rows_read == 0:
            raise ValueError(f"{report.name} has no rows: choose other data")
        if report.rows_dropped == 0:
            continue
        why = (
            f"{report.name}: {report.rows_dropped} of {report.rows_read} rows "
            f"({report.rows_dropped / report.rows_read:.0%}) cannot be learnt from"
            f" ({main_reason(report)})"
        )
        if report.kept == 0:
            raise ValueError(f"{why}, so nothing is left: {remedy(report)}")
        if strict:
            raise ValueError(f"{why}, and --strict-data allows none: {remedy(report)}")
        if report.rows_dropped > max_dropped * report.rows_read:
            raise ValueError(
                f"{why}, and --max-dropped allows {max_dropped:.0%}: {remedy(report)}, "
                "or allow more"
            )


def main_reason(report: DataReport) -> str:
    """The commonest reason for dropping, with its first row, and how many others there are."""
    reason = commonest(report)
    entry, others = report.dropped[reason], len(report.dropped) - 1
    more = f"; {others} other reason{'s' * (others > 1)}" if others else ""
    return f"{reason}: {entry['rows']}, first row {entry['first'][0]}{more}"


def remedy(report: DataReport) -> str:
    """What to do about the commonest reason."""
    if commonest(report) == NOTHING_LEFT:
        return "raise --max-length"
    if commonest(report) == NOT_A_CONVERSATION:
        return "rows need a column conversations or messages, or instruction and output"
    return "repair or remove these rows"


def commonest(report: DataReport) -> str:
    """The reason for which most rows were dropped."""
    return max(report.dropped, key=lambda reason: report.dropped[reason]["rows"])


def flaws_table(reports: Sequence[DataReport]) -> str:
    """A table of what was dropped: reason, rows, first rows; empty if nothing was."""
    lines = [
        (
            reason if len(reports) == 1 else f"{report.name}: {reason}",
            str(entry["rows"]),
            ", ".join(map(str, entry["first"])) + (", ..." * (entry["rows"] > len(entry["first"]))),
        )
        for report in reports
        for reason, entry in sorted(report.dropped.items(), key=lambda item: -item[1]["rows"])
    ]
    if not lines:
        return ""
    lines.insert(0, ("dropped because", "rows", "first rows"))
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in lines)
