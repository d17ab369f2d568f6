"""Every benchmark of whole commands works: its --quick is run as a user would. About 70 seconds.

No time is asserted. What a benchmark itself asserts, that both sides compute the same, holds too.
Those that compare with TRL run their own side alone, for want of an environment that has it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "training": "chat --steps 1 --threads 1",
    "training ": "full --targets all --recompute --threads 1",
    "growth": "--threads 1",
    "trainers": "--threads 1",
    "crash_safety": "",
    "startup": "demo",
    "tokenising": "demo demo",
    "checkpoint": "",
    "whole_command": "demo demo",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_works(name: str):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name.strip()}", *COMMANDS[name].split(), "--quick"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "here" in done.stdout
