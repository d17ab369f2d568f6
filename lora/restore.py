"""Where to go on from: this machine's newest checkpoint, or a newer copy of it elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora.backup import Backup, Place
from lora.run_folder import CONFIG, OWN_FILES, RunFolder
from lora.train_config import continued, differences


def fetch_newer(folder: RunFolder, backup: Backup, given: Mapping[str, Any]) -> list[str]:
    """Puts the newest whole copy into the run's folder, if what is there is older or damaged.

    Args:
        folder: the run's; need not exist.
        backup: where copies are.
        given: the flags that were given.

    Returns:
        What to tell the user.

    Raises:
        ValueError: if the copies are another run's; then nothing was changed.
    """
    if backup.place is None:
        return []
    steps = backup.place.steps()
    if not given.get("resume"):
        if steps:
            raise ValueError(
                f"--backup is {backup.place}, which has copies of a run already; add --resume to "
                "go on with it, or choose another place"
            )
        return []
    checkpoint, _ = folder.newest_checkpoint()
    here = int(checkpoint.name.partition("-")[2]) if checkpoint else -1
    found, damaged = backup.newest(above=here)
    told = [f"{reason}: going back to the copy before it" for reason in damaged]
    if found is None:
        if steps and steps[-1] <= here:
            check_same_run(backup.place, backup.place.read_file(steps[-1], CONFIG), folder, given)
        return told
    step, files = found
    missing = [name for name in OWN_FILES if name not in files]
    if missing:
        raise ValueError(
            f"--backup is {backup.place}, which has no {missing[0]} with step {step}, so it is no "
            "backup; choose another place"
        )
    check_same_run(backup.place, files[CONFIG], folder, given)
    folder.restore(step, files)
    return [*told, f"fetched the checkpoint after step {step} from {backup.place}"]


def check_same_run(
    place: Place, config: bytes, folder: RunFolder, given: Mapping[str, Any]
) -> None:
    """Refuses copies of another run than the flags or the run's folder describe."""
    try:
        theirs = json.loads(config)
        if not isinstance(theirs, dict):
            raise ValueError("no object")
    except ValueError:
        raise ValueError(f"{place}: a copy's {CONFIG} cannot be read; remove that copy") from None
    continued(theirs, given, place)
    ours = folder.saved_config()
    if ours and (different := differences(theirs, ours)):
        raise ValueError(
            f"{place} has copies of another run than {folder.path}: {', '.join(different)}; "
            "choose another --backup or --output"
        )


def check_apart(place: Path, folder: RunFolder) -> None:
    """Refuses copies within the run's own folder, which would be lost with it."""
    if place.resolve().is_relative_to(folder.path.resolve()):
        raise ValueError(
            f"--backup is {place}, within the run's own folder {folder.path}; choose another disk"
        )
