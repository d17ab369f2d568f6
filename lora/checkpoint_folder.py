"""The folder of a checkpoint: its name, and whether in it is what the name says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora.durable import MISSING, verify_folder

CHECKPOINT_NAME = re.compile(r"step-(\d{6,})")
STATE = "state.json"  # how far a checkpoint is


def checkpoint_name(step: int) -> str:
    """The name of the folder of the checkpoint after `step` steps."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """After how many steps a checkpoint was made, by its name."""
    match = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def steps_in(folder: Path) -> list[int]:
    """After how many steps there are checkpoints in a folder, the oldest first."""
    return steps_of(path.name for path in folder.iterdir()) if folder.is_dir() else []


def steps_of(names: Iterable[str]) -> list[int]:
    """The steps of those names that checkpoints have, in order; step-0000008 is no such name."""
    present = set(names)
    found = {int(match[1]) for match in map(CHECKPOINT_NAME.fullmatch, present) if match}
    return sorted(step for step in found if checkpoint_name(step) in present)


def check_checkpoint(folder: Path) -> None:
    """Makes sure that a checkpoint is whole, and the one that its name says.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read, which may pass.
    """
    verify_folder(folder)
    try:
        state = (folder / STATE).read_bytes()
    except MISSING:
        raise ValueError(f"{folder} is damaged: {STATE} is missing") from None
    check_step(step_of(folder), folder, state)


def check_step(step: int, where: object, state: bytes) -> None:
    """Compares a checkpoint's step with what its state says. Raises ValueError naming `where`."""
    found = settings_in(state).get("step", step)
    if found != step:
        raise ValueError(f"{where} is damaged: what is in it is step {found}")


def settings_in(config: bytes) -> dict[str, Any]:
    """What a config.json says; empty if it is damaged."""
    try:
        settings = json.loads(config)
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}
