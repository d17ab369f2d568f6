"""A run's own files, told from damaged ones, and put back.

config.json ends with its own sha256, and what a run's steps depend on does not change in it.
data.json does not change at all. metrics.jsonl only grows.
Every checkpoint has a copy of the three, so the newest whole one can replace what is damaged; what
was logged after it is lost with the steps after it, and logged again.
"""

from __future__ import annotations

from typing import Any

from lora.checkpoint_folder import settings_in
from lora.durable import is_sealed, replace_file
from lora.run_folder import CONFIG, DATA, METRICS, OWN_FILES, RunFolder
from lora.train_config import differences


def repair(run: RunFolder) -> list[str]:
    """Puts back what is not what was written; returns a line for each file."""
    checkpoint, _ = run.newest_checkpoint()
    if not (run.writes and checkpoint):
        return []
    run.take_lock()
    news = []
    for name in OWN_FILES:
        path, copy = run.path / name, checkpoint / name
        if not copy.exists():
            continue
        found = path.read_bytes() if path.is_file() else b""
        kept = copy.read_bytes()
        is_whole = {
            CONFIG: is_sealed(found) and not differences(settings_in(found), settings_in(kept)),
            DATA: found == kept,
            METRICS: found.startswith(kept) and path.exists(),
        }
        if not is_whole[name]:
            replace_file(path, kept)
            news.append(f"{path} is not what was written: put back as it was in {checkpoint}")
    return news


def whole_config(run: RunFolder) -> dict[str, Any]:
    """What config.json says if it is what was written, else nothing."""
    path = run.path / CONFIG
    is_whole = path.is_file() and is_sealed(path.read_bytes())
    return run.saved_config() if is_whole else {}


def own_config(run: RunFolder) -> dict[str, Any]:
    """What config.json says; empty if the run never got so far.

    Raises:
        ValueError: if it is not what was written. To go on from other settings than were trained
            with would be worse.
    """
    saved = run.saved_config()
    if not saved and run.saved_steps():
        raise ValueError(
            f"{run.path / CONFIG} is missing, and no checkpoint here is whole; restore one of "
            "them, give --backup, or start another run"
        )
    if "lr" in saved and not whole_config(run):  # without, it is another program's
        raise ValueError(
            f"{run.path / CONFIG} is not what was written, and no checkpoint here has a copy of "
            "it; restore it, or start another run"
        )
    return saved
