"""One folder and several processes that want it: to train there, or only to read.

About 10 seconds. Seen to fail when: the lock file had to be UTF-8.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import flags, forked, outcome, status

import export
import train
from lora.durable import verify_folder
from lora.run_folder import RunFolder


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    return outcome(place / "uninterrupted")


@pytest.fixture
def in_use(place: Path) -> Iterator[Path]:
    """The folder of a trainer that lives, but stands still after one of its saves."""
    process = forked(flags(output="in-use", save_every=1))
    while not RunFolder(place / "in-use", writes=False).saved_steps():
        time.sleep(0.01)
    os.kill(process, signal.SIGSTOP)
    try:
        yield place / "in-use"
    finally:
        os.kill(process, signal.SIGKILL)
        status(process)


def test_of_two_that_resume_at_once_one_trains_or_the_other_finds_it_done(place, expected):
    """What they leave is one run's, whoever was faster."""
    for pair in range(3):
        given = flags(output=f"pair-{pair}", resume=True, save_every=2)
        ends = [status(process) for process in [forked(given), forked(given)]]
        assert ends.count(0) >= 1
        assert outcome(place / f"pair-{pair}") == expected


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"process 1 on elsewhere\n", b"x" * 9999]
)
def test_what_a_dead_owner_left_in_the_lock_file_hinders_nobody(place, expected, content):
    run = place / f"lock-of-{len(content)}-bytes"
    run.mkdir()
    (run / "run.lock").write_bytes(content)
    assert train.main(flags(output=run.name, resume=True)) == 0
    assert outcome(run) == expected


def test_a_folder_is_in_use_whatever_its_lock_file_says(in_use):
    (in_use / "run.lock").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"in-use is in use by .*; wait for it, or choose"):
        train.main(flags(output="in-use", resume=True))


def test_a_checkpoint_is_exported_while_the_run_lives(in_use):
    newest, _ = RunFolder(in_use, writes=False).newest_checkpoint()
    assert (
        newest and export.command([f"in-use/checkpoints/{newest.name}", "--merged", "merged"]) == 0
    )
    verify_folder(newest)
