"""Which folder a command line means: a new run's, or that of the run to go on with."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora.run_folder import CONFIG, METRICS, RunFolder, free_name
from lora.train_config import FREE_ON_RESUME, HUB, TrainConfig, complete, continued

RUNS = Path("runs")


def choose_folder(given: Mapping[str, Any], writes: bool) -> RunFolder:
    """The folder to train in.

    What --resume goes on with: the run in --output. Without that, the newest run of this model and
    data; and if no flag says anything about what to train, the newest run there is.

    Args:
        given: the flags that were given, and only those.
        writes: whether this process writes; see `RunFolder`.

    Raises:
        ValueError: if a setting makes no sense, or the folder is taken.
    """
    config = complete(given)
    wanted = Path(config.output) if config.output else RUNS / default_name(config)
    if config.resume:
        says_nothing = given.keys() <= FREE_ON_RESUME - {"demo"}
        found = None if config.output else newest_run(RUNS / "*" if says_nothing else wanted)
        run = RunFolder(found or wanted, writes)
    else:
        run = RunFolder(wanted if config.output else free_name(wanted), writes)
    run.check_free()
    if not config.resume and run.path.is_dir() and any(run.path.iterdir()):
        raise ValueError(
            f"output is {run.path}, which holds something already; add --resume to go on with "
            "it, or choose another folder"
        )
    return run


def choose_config(given: Mapping[str, Any], saved: Mapping[str, Any], run: Path) -> TrainConfig:
    """The configuration that the flags describe, or that of the run to go on with.

    Args:
        given: the flags that were given, and only those.
        saved: the configuration that the run began with; empty if it begins now.
        run: the run's folder.

    Raises:
        ValueError: if a setting makes no sense, or does not fit the run to go on with.
    """
    config = continued(saved, given, run) if saved else complete(given)
    if config.backup is None or config.backup.startswith(HUB):
        return config
    # The run may go on from another working directory.
    return dataclasses.replace(config, backup=os.path.abspath(Path(config.backup).expanduser()))


def default_name(config: TrainConfig) -> str:
    """MODEL-DATA, both without owner, path, revision and suffix."""
    parts = [config.model, *config.data]
    names = (without_revision(part).rstrip("/").rpartition("/")[2] for part in parts)
    plain = (re.sub(r"\.(parquet|jsonl|json)$", "", name) for name in names)
    return "-".join(re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "local" for name in plain)


def without_revision(name: str) -> str:
    """The name of a model or data set without `@revision`."""
    return re.sub(r"@[^/]*$", "", name)


def newest_run(pattern: Path) -> Path | None:
    """The run whose log was written last, of those with this name or a number behind it."""
    name = pattern.name
    numbered = re.compile(re.escape(name) + r"(-\d+)?")
    runs = runs_in(pattern.parent)
    return next((run for run in runs if name == "*" or numbered.fullmatch(run.name)), None)


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, the one whose log was written last first; none if there is none."""
    configs = [path.parent for path in folder.glob(f"*/{CONFIG}") if path.is_file()]
    found = {*configs, *(path.parent for path in folder.glob("*/checkpoints/"))}
    return sorted(found, key=written_last, reverse=True)


def written_last(folder: Path) -> float:
    """When the run last did something, in seconds since 1970; 0 if it has just been removed."""
    for name in (METRICS, CONFIG):
        with contextlib.suppress(OSError):
            return (folder / name).stat().st_mtime
    return 0
