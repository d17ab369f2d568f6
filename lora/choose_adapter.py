"""Which adapter a name means, which run it is from, and whether it may be used.

Needs no PyTorch, so that a wrong adapter is refused before it is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from lora.checkpoint_folder import CHECKPOINT_NAME
from lora.config import CARD, CONFIG_FILE, BaseModel, read_config
from lora.durable import MANIFEST, UNFINISHED, verify_folder
from lora.repair import whole_config
from lora.run_folder import CONFIG, RunFolder


def find_adapter(path: Path) -> Path:
    """The adapter's own folder, given it or the folder of a run.

    Raises:
        ValueError: if there is none, or not yet.
    """
    if path.resolve().name.startswith(UNFINISHED):
        raise ValueError(
            f"{path}: is being written, or was when a run was killed; take a whole checkpoint"
        )
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    run = path.parent if path.name == "adapter" and not path.exists() else path
    newest, _ = RunFolder(run, writes=False).newest_checkpoint()
    if newest:
        raise ValueError(
            f"{run}: is a run that is not finished; give its checkpoint {newest}, or finish it "
            "with --resume"
        )
    if not path.exists():
        raise ValueError(f"{path}: there is no such adapter; give its folder or that of its run")
    raise ValueError(
        f"{path}: has no {CONFIG_FILE}, so it is no adapter and no finished run; take another"
    )


def run_of(adapter: Path) -> RunFolder | None:
    """The run whose result or checkpoint is in this folder; None if it lies in no run."""
    folder = adapter.resolve()
    for run in (RunFolder(parent, writes=False) for parent in folder.parents[:2]):
        is_checkpoint = folder.parent == run.checkpoints and CHECKPOINT_NAME.fullmatch(folder.name)
        if (folder == run.adapter or is_checkpoint) and (run.path / CONFIG).is_file():
            return run
    return None


def base_of(adapter: Path) -> tuple[str | None, str | None]:
    """Name and commit of the model that an adapter is for; None for what nothing says.

    As the flags of its run had it, since those may name a local folder, or else as its own file
    says, which names no folder for the sake of privacy.
    """
    run = run_of(adapter)
    with contextlib.suppress(ValueError, OSError):
        saved = run.saved_config() if run else {}
        name, revision = saved.get("model"), saved.get("model_revision")
        if isinstance(name, str) and isinstance(revision, str | None):
            return name, revision
    _, base = read_config(adapter / CONFIG_FILE)
    return base.name, base.revision


def check_whole(adapter: Path) -> None:
    """Refuses a checkpoint, or a run's result, that is not what was written.

    An adapter from elsewhere has no manifest, and is only checked as it is read. A result's card
    may be changed by whoever publishes it.

    Raises:
        ValueError: saying what is wrong with it.
    """
    is_checkpoint = CHECKPOINT_NAME.fullmatch(adapter.resolve().name)
    run = run_of(adapter)
    is_result = run and (whole_config(run) or (adapter / MANIFEST).exists())
    if not (is_checkpoint or is_result):
        return
    try:
        verify_folder(adapter, free={CARD})
    except ValueError as error:
        what_to_do = "take another checkpoint" if is_checkpoint else "write it again with --resume"
        raise ValueError(f"{error}; {what_to_do}") from None


def check_base(adapter: Path, base: BaseModel, name: str, weights_hash: Callable[[], str]) -> None:
    """Refuses an adapter that was trained on other weights, if it says on which.

    Args:
        adapter: its folder.
        base: what it says of its base.
        name: what the user calls the model at hand.
        weights_hash: computes the hash of its weights, which takes seconds for a large one.

    Raises:
        ValueError: if they differ.
    """
    if base.sha256 and base.sha256 != weights_hash():
        raise ValueError(
            f"{adapter}: was trained on other weights than {name} has; "
            f"use its own base, {base.name or 'which it does not name'}"
        )
