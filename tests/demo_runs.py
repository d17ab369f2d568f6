"""Finished runs of the demo, each trained once by its command, for all tests that look at one."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT


class DemoRun(NamedTuple):
    """The folder of a finished run, and what its command printed."""

    folder: Path
    output: str


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], DemoRun]:
    """Trains the demo with a seed, in a minute or two; the same run if it is asked for again."""

    @functools.cache
    def train(seed: int) -> DemoRun:
        folder = tmp_path_factory.mktemp("demo") / "runs" / f"seed-{seed}"
        command = ["train.py", "--demo", "--lr", "2e-4", "--seed", str(seed)]
        done = subprocess.run(
            [sys.executable, *command, "--output", str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return DemoRun(folder, done.stdout)

    return train
