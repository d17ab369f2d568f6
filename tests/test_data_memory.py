"""How much memory tokenising takes, in a process of its own. Linux only, about 30 seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from token_data import write_jsonl

ROOT = Path(__file__).parents[1]
MEASURE = """
import sys
from pathlib import Path
from data.dataset import tokenize
from data.sources import find_source
from token_data import small_chat_format

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))

folder = Path(sys.argv[1])
chat_format = small_chat_format(folder / "tokenizer")
kept, report = tokenize(find_source(sys.argv[2]), chat_format, 2048, "assistant", folder / "cache")
print(len(kept), kept.lengths.sum(), peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, as Linux has it")
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str):
    """Thirty thousand rows more take a quarter of the memory that their token files would.

    Seen to fail when a file's rows were read at once, and when the tokens were collected.
    """
    text = "the cat sat on a mat, she'll say: don't http://x.y/z " * 6
    peaks, tokens = [], []
    for count in (10_000, 40_000):  # from some thousand on the buffers have their size
        path = tmp_path / f"{count}{suffix}"
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"{number} {text}"},
                    {"role": "assistant", "content": text},
                ]
            }
            for number in range(count)
        ]
        if suffix == ".jsonl":
            write_jsonl(path, rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        child = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path), str(path)],
            env=os.environ
            | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=True,
        )
        kept, total, peak = child.stdout.split()
        assert int(kept) == count
        peaks.append(float(peak))
        tokens.append(int(total))
    bytes_more = 5 * (tokens[1] - tokens[0])  # four for an id, one for whether it is a target
    assert bytes_more > 60e6
    assert (peaks[1] - peaks[0]) * 2**20 < bytes_more / 4
