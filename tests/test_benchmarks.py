"""Every benchmark works: its --quick is run as a user would. Takes about 2 minutes.

No time is asserted. What a benchmark itself asserts, that both sides compute the same, holds too.
Those that compare with TRL run their own side alone, for want of an environment that has it.

Seen to fail when one side's loss was half the other's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    "training chat --micro-batch-tokens 1024 --steps 1 --threads 1",
    "training full --targets all --recompute --threads 1",
    "growth --threads 1",
    "trainers --threads 1",
    *(f"decoding {work} --repeats 1 --threads 1" for work in ("tokens", "first")),
    *(f"decoding {work} --repeats 1 --threads 1" for work in ("history", "adapter", "batch")),
    "startup demo",
    "tokenising demo demo",
    "checkpoint",
    "whole_command demo demo",
    "crash_safety",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_benchmark_works(command: str):
    name, *more = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *more, "--quick"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2, "no table"
