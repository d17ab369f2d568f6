"""The folder of a run: what it was asked, what it did, and from where it can go on.

    config.json      every flag, and what the run rests on: model, data, versions; sealed
    data.json        what was read, dropped and cut
    metrics.jsonl    one JSON object a line, appended
    checkpoints/     step-000100, step-000200, ...; see lora/checkpoint.py
    adapter/         the result
    run.lock         who is training here; locked as long as the process lives

Of several processes that train together only the main one has a folder that is open for writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lora.checkpoint_folder import CHECKPOINT_NAME, check_checkpoint, checkpoint_name, steps_in
from lora.config import CARD
from lora.durable import (
    MANIFEST,
    as_json,
    make_folder,
    naming,
    publish_folder,
    remove_folder,
    remove_leftovers,
    replace_file,
    sealed,
    verify_folder,
    verify_written,
)
from lora.locks import lock_file
from lora.train_config import check_kinds

CONFIG, DATA, METRICS, LOCK = "config.json", "data.json", "metrics.jsonl", "run.lock"
OWN_FILES = (CONFIG, DATA, METRICS)
OWN_NAMES = re.compile("|".join(map(re.escape, (*OWN_FILES, "adapter"))))


class RunFolder:
    """A run's folder on disk.

    Args:
        path: where it is, or will be.
        writes: False for a process that only trains along: it reads, and its writes do nothing.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        self.lock: TextIO | None = None
        self.metrics: TextIO | None = None
        self.written: dict[str, bytes] = {}

    @property
    def adapter(self) -> Path:
        """Where the result is, once there is one."""
        return self.path / "adapter"

    def check_free(self) -> None:
        """Makes sure that the folder can be made here and written; makes nothing yet.

        Raises:
            ValueError: if it cannot, or if another run is alive in it.
        """
        place = self.path
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise ValueError(f"output is {self.path}, but {place} is a file; choose another one")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ValueError(
                f"output is {self.path}, but {place} cannot be written; choose another"
            )
        if self.writes and (self.path / LOCK).exists():
            self.take_lock()

    def open(self, config: Mapping[str, Any], data: Mapping[str, Any], done: int) -> None:
        """Makes the folder if need be, takes its lock, and writes down what the run is.

        Args:
            config: what config.json shall say.
            data: what data.json shall say.
            done: how many steps of the run are done; 0 if it begins.
        """
        if not self.writes:
            return
        try:
            make_folder(self.checkpoints)
        except OSError as error:
            raise ValueError(
                f"output is {self.path}, which cannot be made ({error.strerror}); choose another"
            ) from None
        self.take_lock()
        remove_leftovers(self.path, OWN_NAMES)
        remove_leftovers(self.checkpoints, CHECKPOINT_NAME)
        self.written = {CONFIG: sealed(config), DATA: as_json(data)}
        for name, content in self.written.items():
            replace_file(self.path / name, content)
        self.start_metrics(done)

    def take_lock(self) -> None:
        """Locks the folder until this process ends, however it ends.

        Raises:
            ValueError: naming the process that trains here already, or what stands in the way.
            OSError: if the lock cannot be opened.
        """
        if self.lock:
            return
        self.lock = lock_file(self.path / LOCK)

    def saved_config(self) -> dict[str, Any]:
        """What config.json says; empty if the run never got so far."""
        try:
            saved = json.loads((self.path / CONFIG).read_bytes())
            if not isinstance(saved, dict):
                raise ValueError(f"it holds {type(saved).__name__}, not an object")
            check_kinds(saved)
            return saved
        except FileNotFoundError:
            return {}
        except (ValueError, OSError, RecursionError) as error:
            raise ValueError(
                f"{self.path / CONFIG} cannot be read ({error}); restore it, or start another run"
            ) from None

    # --- checkpoints ------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.checkpoints / checkpoint_name(step)

    def saved_steps(self) -> list[int]:
        """Which checkpoints there are, whole or not, the oldest first."""
        return steps_in(self.checkpoints)

    def newest_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and why each newer one is not.

        Raises:
            ValueError: one cannot be read at all. That may pass, and going back would lose it.
        """
        reasons: list[str] = []
        for step in reversed(self.saved_steps()):
            try:
                check_checkpoint(self.checkpoint(step))
                return self.checkpoint(step), reasons
            except ValueError as error:
                reasons.append(str(error))
            except OSError as error:
                raise ValueError(
                    f"{self.checkpoint(step)} cannot be read ({error.strerror}): run the same "
                    "command again, or remove it to go on from the one before it"
                ) from None
        return None, reasons

    def publish_checkpoint(self, step: int, files: Mapping[str, bytes], keep: int) -> list[str]:
        """Writes the checkpoint after `step` steps, and only then removes all but the newest.

        Returns:
            What could not be removed, a line each; that is no reason to end a run.

        Raises:
            OSError: if the disk is full or cannot be written; the older checkpoints are all there.
        """
        if not self.writes:
            return []
        folder = self.checkpoint(step)
        try:
            check_checkpoint(folder)  # there already: replacing it could only harm it
        except ValueError:
            try:
                written = publish_folder(folder, files)
                verify_written(folder, written)  # a drive may rename what it does not have yet
            except OSError as error:
                reason = error.strerror or error
                raise OSError(
                    f"{folder} could not be written ({reason}); older checkpoints are "
                    "whole: make room, and go on with --resume"
                ) from None
        steps = self.saved_steps()
        newer = [saved for saved in steps if saved > step]  # damaged ones, which we went back from
        obsolete = [saved for saved in steps if saved <= step][:-keep] + newer
        trouble = []
        for checkpoint in map(self.checkpoint, obsolete):
            try:
                remove_folder(checkpoint)
            except OSError as error:
                trouble.append(f"{checkpoint} is of no more use, and stays ({error.strerror})")
        return trouble

    def own_files(self) -> dict[str, bytes]:
        """What the run was and did up to now; with a checkpoint, all that it can go on from.

        As this process wrote it, whatever has become of the files since.
        """
        if not self.metrics:
            return {}
        self.metrics.seek(0)
        return self.written | {METRICS: self.metrics.read().encode()}

    def restore(self, step: int, files: Mapping[str, bytes]) -> None:
        """Puts a copy of a checkpoint and of the run's own files into this folder.

        The checkpoint comes last: until it is there, the run is as far as it was.
        """
        make_folder(self.checkpoints)
        self.take_lock()
        for name in OWN_FILES:
            replace_file(self.path / name, files[name])
        contents = {name: content for name, content in files.items() if name != MANIFEST}
        publish_folder(self.checkpoint(step), contents)

    def publish_adapter(self, files: Mapping[str, bytes]) -> list[str]:
        """Writes the result; one that is there stays as it is, with whatever was added to it.

        Returns:
            What was wrong with one that is there and not whole, in a line.
        """
        news: list[str] = []
        if not self.writes:
            return news
        if os.path.lexists(self.adapter):
            try:
                verify_folder(self.adapter, free=(CARD,))  # the card may be edited, or gone
                names = files.keys() - {CARD}
                if all((self.adapter / name).read_bytes() == files[name] for name in names):
                    return news
            except ValueError as error:
                news.append(f"{error}: written again")
        publish_folder(self.adapter, files)
        return news

    # --- metrics ----------------------------------------------------------------------------------

    def start_metrics(self, done: int) -> None:
        """Opens metrics.jsonl behind the records of the first `done` steps.

        What an interrupted run wrote after its last checkpoint is cut off, so that each step
        stands there once: what stays is the checkpoint's copy.
        """
        path, (newest, _) = self.path / METRICS, self.newest_checkpoint()
        is_from_it = newest == self.checkpoint(done)
        replace_file(path, (newest / METRICS).read_bytes() if newest and is_from_it else b"")
        self.metrics = path.open("a+", encoding="utf-8")

    def records(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says, without a last line that was cut off."""
        path = self.path / METRICS
        records = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    records.append(record)
        return records

    def losses(self) -> list[float]:
        """The loss of each step that changed the weights."""
        return [r["loss"] for r in self.records() if isinstance(r.get("loss"), float)]

    def was_evaluated(self, done: int) -> bool:
        """Whether an evaluation, or an answer, after `done` steps was logged."""
        looks = ({"eval_loss", "sample"} & r.keys() for r in self.records() if r["step"] == done)
        return any(looks)

    def log(self, **record: Any) -> None:
        """Appends a record; whoever watches the file sees it at once."""
        if self.metrics:
            with naming(self.path / METRICS):
                self.metrics.write(json.dumps(record) + "\n")
                self.metrics.flush()


def free_name(folder: Path) -> Path:
    """`folder`, or with -2, -3, ... behind it the first that does not exist."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in range(2, 10_000))
    return folder if not folder.exists() else next(f for f in numbered if not f.exists())
