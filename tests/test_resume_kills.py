"""Processes that are killed at bad moments, and checkpoints that are damaged: the same bits again.

About a minute. Kills at random moments are in test_random_kills.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    child,
    command_line,
    flags,
    forked,
    litter,
    outcome,
    start,
    status,
)

import train
from lora import durable
from lora.run_folder import RunFolder


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    return outcome(place / "uninterrupted")


def killed_when(calls: int, module: Any, name: str) -> Callable[[], None]:
    """What makes a process end at the given call of a function, counted from 0."""

    def setup() -> None:
        function, seen = getattr(module, name), []

        def counted(*arguments: Any, **named: Any) -> Any:
            if len(seen) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(1)
            return function(*arguments, **named)

        setattr(module, name, counted)

    return setup


# A save makes 6 syncs of files and folders; a run makes some more when it starts.
SAVES = {
    **{f"sync {n}": (n, os, "fsync") for n in (0, 3, 5, 7, 9, 11, 13, 15, 17, 19)},
    "before it is renamed": (1, durable, "verify_written"),
    "while the oldest is removed": (0, durable.shutil, "rmtree"),
    "between gradient and step": (6, torch.nn.utils, "clip_grad_norm_"),
    "between step and record": (6, train, "log_step"),
    "while it evaluates": (1, train, "evaluate"),
    "before the adapter is there": (0, train, "result"),
}


@pytest.mark.parametrize("kill", SAVES.values(), ids=SAVES.keys())
def test_a_kill_at_a_bad_moment_does_no_harm(place, expected, kill, request):
    output = request.node.callspec.id.replace(" ", "-")
    given = flags(output=output, save_every=5, keep=1)
    assert status(forked(given, killed_when(*kill))) == -signal.SIGKILL
    assert status(forked(given | {"resume": True})) == 0
    assert outcome(place / output) == expected
    assert litter(place / output) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_from_outside_saves_the_step_and_says_how_to_go_on(place, expected, number):
    """A real process, its real command line, and what a shell sees of it."""
    words = command_line(flags(output=f"outside-{number.name}"))
    with start(*words, folder=place, setup="train.LONGEST_SAMPLE = 4") as process:
        while "held-out loss" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.split() == "stopping and saving; a second time stops at once".split()
    assert "the same command with --resume goes on from there" in out
    done = RunFolder(place / f"outside-{number.name}", writes=False).saved_steps()
    assert f"stopped after step {done[-1]} of 20" in out
    result = child(*words, "--resume", folder=place, setup="train.LONGEST_SAMPLE = 4")
    assert (result.returncode, result.stderr) == (0, "")
    assert outcome(place / f"outside-{number.name}") == expected


def test_the_second_signal_ends_it_at_once(place):
    """Also in the middle of a save; what is published stays whole."""
    setup = """
def twice(*arguments):
    print("saving", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
import lora.durable
lora.durable.verify_written = twice
"""
    result = child(
        *command_line(flags(output="twice")), "--save-every=3", folder=place, setup=setup
    )
    assert result.returncode == 143
    assert "saving" in result.stdout and "stopped after" not in result.stdout
    assert RunFolder(place / "twice", writes=False).saved_steps() == []
    assert train.main(flags(output="twice", resume=True)) == 0
    assert litter(place / "twice") == []


def test_a_run_that_was_killed_may_be_resumed_but_not_one_that_lives(place):
    """The lock goes with its process; its file stays and hinders nobody."""
    process = forked(flags(output="locked", save_every=1))
    while not RunFolder(place / "locked", writes=False).saved_steps():
        time.sleep(0.01)
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(ValueError, match=f"locked is in use by process {process} on"):
            train.main(flags(output="locked", resume=True))
    finally:
        os.kill(process, signal.SIGKILL)
        status(process)
    assert train.main(flags(output="locked", resume=True)) == 0


# --- damage -------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": flip,
    "gone": lambda path: path.unlink(),
    "swapped": lambda path: path.write_bytes(
        (path.parents[1] / "step-000005" / path.name).read_bytes()
    ),
}
FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
]


@pytest.fixture(scope="module")
def died(place: Path) -> Path:
    """A run that died after its checkpoints of steps 5 and 10."""
    given = flags(output="died", save_every=5)
    assert status(forked(given, killed_when(11, train, "train_step"))) == -signal.SIGKILL
    assert RunFolder(place / "died", writes=False).saved_steps() == [5, 10]
    return place / "died"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    died, expected, tmp_path, capsys, damage, file
):
    if (damage, file) == (DAMAGES["swapped"], "adapter_config.json"):
        return  # which is the same in every checkpoint
    run = shutil.copytree(died, tmp_path / "run")
    newest = run / "checkpoints" / "step-000010"
    damage(newest / file)
    assert train.main(flags(output=str(run), resume=True)) == 0
    said = capsys.readouterr().out
    assert f"{newest} is damaged: " in said and "going back to the checkpoint before it" in said
    assert "going on after step 5," in said
    assert outcome(run) == expected


def test_a_run_without_any_whole_checkpoint_starts_again_and_says_why(
    died, expected, tmp_path, capsys
):
    run = shutil.copytree(died, tmp_path / "run")
    for step in (5, 10):
        flip(run / "checkpoints" / f"step-{step:06d}" / "optimizer.safetensors")
    assert train.main(flags(output=str(run), resume=True)) == 0
    said = capsys.readouterr().out
    assert said.count("is damaged: optimizer.safetensors is not what was written") == 2
    assert "going on" not in said
    assert outcome(run) == expected


def test_after_going_back_the_damaged_checkpoint_does_not_outlive_the_next(died, tmp_path):
    """Or it would count as the newest forever, and be looked at again each time."""
    run = shutil.copytree(died, tmp_path / "run")
    flip(run / "checkpoints" / "step-000010" / "state.json")
    setup = killed_when(8 - 5, train, "train_step")
    given = flags(output=str(run), resume=True, save_every=1, keep=2)
    assert status(forked(given, setup)) == -signal.SIGKILL
    assert RunFolder(run, writes=False).saved_steps() == [7, 8]
