"""Finished runs of the demo, each trained once by its command, for all tests that look at one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

from data.token_cache import locked


class DemoRun(NamedTuple):
    """The folder of a finished run, and what its command printed."""

    folder: Path
    output: str


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], DemoRun]:
    """Trains the demo with a seed, in a minute or two; the same run if it is asked for again.

    Processes that test different files at once share the runs, too.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def train(seed: int) -> DemoRun:
        place = shared / f"demo-{seed}"
        folder, output = place / "runs" / f"seed-{seed}", place / "output.txt"
        place.mkdir(exist_ok=True)
        with locked(place):
            if not output.exists():
                command = ["train.py", "--demo", "--lr", "2e-4", "--seed", str(seed)]
                done = subprocess.run(
                    [sys.executable, *command, "--output", str(folder)],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, done.stderr
                output.write_text(done.stdout)
        return DemoRun(folder, output.read_text())

    return train
