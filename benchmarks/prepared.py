"""This project's side of benchmarks/tokenising.py, in a process of its own.

python -m benchmarks.prepared here MODEL DATA CACHE RESULT
python -m benchmarks.prepared compare RESULT OTHER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from data.chat_format import chat_format_of
from data.dataset import tokenize
from data.sources import find_source
from data.tokenizer import Tokenizer

MAX_LENGTH = 2048
MOST_FUSED = 0.005  # of the rows


def here(model: str, data: str, cache: str, result: str) -> None:
    """Prints how long the preparation takes; writes down what comes out of it."""
    chat_format = chat_format_of(Tokenizer.from_folder(Path(model)))
    started = time.perf_counter()
    kept, _ = tokenize(find_source(data), chat_format, MAX_LENGTH, "assistant", Path(cache))
    print(json.dumps({"seconds": time.perf_counter() - started}))
    np.savez(result, lengths=kept.lengths, ids=kept.tokens, targets=kept.targets)


def compare(result: str, other: str) -> None:
    """Makes sure that both sides have the same tokens and targets.

    But for a few rows: where an answer begins with a line break, the template fuses it with the one
    before it (see data/chat_format.py).
    """
    sides = [np.load(file) for file in (result, other)]
    assert len(sides[0]["lengths"]) == len(sides[1]["lengths"])
    rows = []
    for side in sides:
        ids, targets = side["ids"], side["targets"]
        ends = np.cumsum(side["lengths"])
        starts = ends - side["lengths"]
        rows.append(
            [
                (ids[a:b].tobytes(), targets[a:b].tobytes())
                for a, b in zip(starts, ends, strict=True)
            ]
        )
    different = sum(one != two for one, two in zip(*rows, strict=True))
    assert different <= MOST_FUSED * len(rows[0]), different
    print(f"{different} of {len(rows[0])} rows differ")


if __name__ == "__main__":
    {"here": here, "compare": compare}[sys.argv[1]](*sys.argv[2:])
