"""Copies of a run's checkpoints in another place, so that a run outlives its machine.

A copy is one folder, step-000100, with everything that going on from there takes: the checkpoint's
files, the run's config.json, data.json and metrics.jsonl up to then, and a manifest of them all.
Whatever the place is, a copy counts if each of its files is what the manifest says.

Copying is a thread's work: training never waits for it. A place that fails is tried again after a
pause, which grows; if a newer checkpoint is there by then, that one is copied instead.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from lora.durable import (
    MANIFEST,
    manifest,
    publish_folder,
    remove_folder,
    remove_leftovers,
    verify_files,
)
from lora.run_folder import checkpoint_name, steps_in

KEPT = 2  # copies, the newest
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds before a failed copy is tried again
LAST_TRIES = 5  # to copy the last checkpoint: with the pauses between them about half a minute
URGENT_SECONDS = 20.0  # left to it when the machine is about to go; torchrun kills after 30


class Place(Protocol):
    """Where copies are kept. Every method may raise OSError or ValueError."""

    def open(self) -> None:
        """Makes sure that copies can be written here, as far as that can be told."""

    def steps(self) -> list[int]:
        """After how many steps there are copies, whole or not, the oldest first."""

    def read(self, step: int) -> dict[str, bytes]:
        """All files of a copy, by their names, as they are there now."""

    def read_file(self, step: int, name: str) -> bytes:
        """One file of a copy."""

    def replace(self, step: int, files: Mapping[str, bytes], obsolete: Collection[int]) -> None:
        """Adds a copy, visible only when it is whole, and then removes the obsolete ones."""


class FolderPlace:
    """Copies in a folder: another disk, or a mounted drive.

    Args:
        folder: is made if need be; the one above must be there, or a drive that is not mounted
            would be taken for an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def open(self) -> None:
        parent = self.folder.resolve().parent
        if not parent.is_dir():
            raise ValueError(
                f"--backup is {self.folder}, but there is no folder {parent}; mount the drive, or "
                "make the folder"
            )
        place = self.folder if self.folder.exists() else parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise ValueError(
                f"--backup is {self.folder}, which cannot be written; choose another folder"
            )

    def steps(self) -> list[int]:
        return steps_in(self.folder)

    def read(self, step: int) -> dict[str, bytes]:
        folder = self.folder / checkpoint_name(step)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def read_file(self, step: int, name: str) -> bytes:
        return (self.folder / checkpoint_name(step) / name).read_bytes()

    def replace(self, step: int, files: Mapping[str, bytes], obsolete: Collection[int]) -> None:
        self.folder.mkdir(exist_ok=True)
        remove_leftovers(self.folder)
        contents = {name: content for name, content in files.items() if name != MANIFEST}
        publish_folder(self.folder / checkpoint_name(step), contents)
        for old in obsolete:
            remove_folder(self.folder / checkpoint_name(old))


class Backup:
    """Copies checkpoints to a place, in the background.

    Args:
        place: where to; None copies nothing.
    """

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self.changed = threading.Condition()
        self.waiting: tuple[int, Mapping[str, bytes]] | None = None
        self.copied: int | None = None
        self.failures = 0  # in a row
        self.trouble = ""
        self.is_woken = False  # from a pause
        self.thread: threading.Thread | None = None

    @property
    def status(self) -> str:
        """What a progress bar says of it."""
        if self.failures:
            return f"backup failed {self.failures} times ({self.trouble})"
        return "" if self.copied is None else f"backup of step {self.copied}"

    def newest(self, above: int) -> tuple[tuple[int, dict[str, bytes]] | None, list[str]]:
        """The newest whole copy of more than `above` steps, and why each newer one is not whole.

        Raises:
            ValueError: a copy cannot be read at all. That may pass, and going back would lose it.
        """
        reasons: list[str] = []
        if self.place is None:
            return None, reasons
        for step in reversed(self.place.steps()):
            if step <= above:
                break
            where = f"{self.place}/{checkpoint_name(step)}"
            try:
                files = self.place.read(step)
            except OSError as error:
                raise ValueError(
                    f"{where} cannot be read ({error.strerror}): run the same command again, or "
                    "remove that copy to go on from the one before it"
                ) from None
            try:
                verify_files(where, files)
                return (step, files), reasons
            except ValueError as error:
                reasons.append(str(error))
        return None, reasons

    def copy(self, step: int, files: Mapping[str, bytes]) -> None:
        """Has a checkpoint copied; returns at once. One that is still waiting is left out."""
        if self.place is None:
            return
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, name="backup", daemon=True)
            self.thread.start()
        with self.changed:
            self.waiting = step, files
            self.changed.notify_all()

    def work(self) -> None:
        """What the thread does: copies what waits, and tries again what failed."""
        pause = FIRST_PAUSE
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting is not None)
                assert self.waiting is not None
                job = self.waiting
            try:
                self.put(*job)
            except Exception as error:  # whatever it is, training must not end for it
                with self.changed:
                    self.failures += 1
                    self.trouble = in_few_words(error)
                    self.changed.notify_all()
                    was_woken = self.changed.wait_for(lambda: self.is_woken, timeout=pause)
                    self.is_woken = False
                pause = FIRST_PAUSE if was_woken else min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            with self.changed:
                self.copied, self.failures = job[0], 0
                if self.waiting is job:
                    self.waiting = None
                self.changed.notify_all()

    def put(self, step: int, files: Mapping[str, bytes]) -> None:
        """Copies one checkpoint and removes all copies but the newest.

        Newer ones are of a future that this run went back from, because they were damaged.
        """
        assert self.place is not None
        others = [other for other in self.place.steps() if other != step]
        older = [other for other in others if other < step]
        newer = [other for other in others if other > step]
        whole = dict(files) | {MANIFEST: manifest(files)}
        self.place.replace(step, whole, older[: -(KEPT - 1)] + newer)

    def finish(self, is_urgent: Callable[[], bool]) -> str:
        """Waits until the last checkpoint is copied, or it is clear that it cannot be.

        Args:
            is_urgent: whether the machine is about to go, so that there is no time to try again.

        Returns:
            What is wrong; nothing if all is copied.
        """
        urgent_since = None
        with self.changed:
            self.failures, self.is_woken = 0, True
            self.changed.notify_all()
            while self.waiting is not None:
                if is_urgent():
                    urgent_since = urgent_since or time.monotonic()
                    if time.monotonic() > urgent_since + URGENT_SECONDS:
                        return "it takes too long"
                if self.failures >= (LAST_TRIES if urgent_since is None else 1):
                    return self.trouble
                self.changed.wait(0.1)
        return ""


def in_few_words(error: Exception) -> str:
    """An error for a progress bar."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
