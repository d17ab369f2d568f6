"""Where to go on from: this machine's newest checkpoint, or a newer copy of it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora.backup import Backup
from lora.checkpoint_folder import settings_in, step_of
from lora.repair import whole_config
from lora.run_folder import CONFIG, OWN_FILES, RunFolder
from lora.train_config import continued, differences


def refuse_taken(backup: Backup) -> None:
    """Refuses to begin a run with copies in a place that has some already. Raises ValueError."""
    if backup.steps():
        raise ValueError(
            f"--backup is {backup.place}, which has copies of a run already; add --resume to go on "
            "with it, or choose another place"
        )


def fetch_newer(folder: RunFolder, backup: Backup, given: Mapping[str, Any]) -> None:
    """Puts the newest whole copy into the run's folder, if what is there is older or damaged.

    Args:
        folder: the run's; need not exist.
        backup: where copies are; what to tell the user is added to its news.
        given: the flags that were given.

    Raises:
        ValueError: if the copies are another run's, or none is whole and neither is a checkpoint
            here; then nothing was changed.
    """
    checkpoint, damaged = folder.newest_checkpoint()
    found = backup.newest()
    if found is None:
        if backup.damaged and checkpoint is None:
            raise ValueError(
                f"{backup.news[0]}, and {backup.place} has no other one; remove what is there to "
                "begin again, or choose another place"
            )
        return
    step, files = found
    missing = [name for name in OWN_FILES if name not in files]
    if missing:
        raise ValueError(
            f"--backup is {backup.place}, which has no {missing[0]} with step {step}, so it is no "
            "backup; choose another place"
        )
    check_same_run(backup.place, files[CONFIG], folder, given)
    if checkpoint is None or step_of(checkpoint) < step:
        folder.restore(step, files)
        backup.news += damaged
        backup.news.append(f"fetched the checkpoint after step {step} from {backup.place}")


def check_same_run(
    place: object, config: bytes, folder: RunFolder, given: Mapping[str, Any]
) -> None:
    """Refuses copies of another run than the flags or the run's folder describe."""
    theirs = settings_in(config)
    if not theirs:
        raise ValueError(f"{place}: a copy's {CONFIG} cannot be read; remove that copy")
    continued(theirs, given, place)
    if different := differences(theirs, whole_config(folder)):
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
