"""Copies of a run's checkpoints in another place, so that a run outlives its machine.

A copy is one folder, step-000100, with everything that going on from there takes: the checkpoint's
files, the run's config.json, data.json and metrics.jsonl up to then, and a manifest of them all.
Whatever the place is, a copy counts if each file in its manifest is what the manifest says.

Copying is a thread's work: training never waits for it. A place that fails is tried again after a
pause, which grows; if a newer checkpoint is there by then, that one is copied instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from lora.checkpoint_folder import STATE, check_step, checkpoint_name, settings_in, steps_of
from lora.durable import MANIFEST, manifest, verify_files
from lora.run_folder import CONFIG
from lora.train_config import differences

KEPT = 2  # copies, the newest
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds before a failed copy is tried again
PATIENCE = 60.0  # seconds in which a place that fails may recover when all else is done
URGENT_SECONDS = 20.0  # for the last copy when the machine is about to go; torchrun kills after 30


class Place(Protocol):
    """Where copies are kept. Every method may raise OSError or ValueError."""

    def open(self) -> None:
        """Makes sure that copies can be written here, as far as that can be told."""

    def folders(self) -> dict[str, set[str]]:
        """All folders that are here, and the names of their files."""

    def read(self, folder: str) -> dict[str, bytes]:
        """All files of a folder, by their names, as they are there now."""

    def read_file(self, folder: str, name: str) -> bytes:
        """One of them."""

    def replace(self, folder: str, files: Mapping[str, bytes], obsolete: Collection[str]) -> None:
        """Adds a folder, visible only when it is whole, and then removes the obsolete ones."""


class Backup:
    """Copies checkpoints to a place, in the background.

    As a context it gives the last copy a little time if an error ends the block.

    Args:
        place: where to; None copies nothing.
    """

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self.damaged: set[int] = set()
        self.changed = threading.Condition()
        self.waiting: tuple[int, Mapping[str, bytes]] | None = None
        self.trouble = ""  # of the last try
        self.news: list[str] = []
        self.longest_pause = LONGEST_PAUSE
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if kind is not None:
            self.finish(lambda: True)

    @property
    def status(self) -> str:
        """What a progress bar says of it; nothing while all is well."""
        return f"BACKUP FAILS ({in_few_words(self.trouble)})" if self.trouble else ""

    def take_news(self) -> list[str]:
        """What happened since this was asked last, a line each."""
        with self.changed:
            news, self.news = self.news, []
        return news

    # --- what is there ----------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """After how many steps there are copies, whole or not, the oldest first.

        A folder is one if it has the name of one, and in it a manifest or a configuration.
        """
        folders = self.place.folders() if self.place else {}
        return steps_of(name for name, files in folders.items() if files & {MANIFEST, CONFIG})

    def newest(self) -> tuple[int, dict[str, bytes]] | None:
        """The newest whole copy. What is wrong with newer ones is news, and they are obsolete.

        Raises:
            ValueError: a copy cannot be read at all. That may pass, and going back would lose it.
        """
        for step in reversed(self.steps()):
            assert self.place is not None
            where = f"{self.place}/{checkpoint_name(step)}"
            try:
                files = self.place.read(checkpoint_name(step))
            except OSError as error:
                raise ValueError(
                    f"{where} cannot be read ({error.strerror}): run the same command again, or "
                    "remove that copy to go on from the one before it"
                ) from None
            try:
                names = verify_files(where, files)
                check_step(step, where, files.get(STATE, b""))
                return step, {name: files[name] for name in names}
            except ValueError as error:
                self.damaged.add(step)
                self.news.append(f"{error}: it is not taken")
        return None

    # --- what is added ----------------------------------------------------------------------------

    def copy(self, step: int, files: Mapping[str, bytes]) -> None:
        """Has a checkpoint copied; returns at once. One that is still waiting is left out."""
        if self.place is None:
            return
        with self.changed:
            self.waiting = step, files
            self.changed.notify_all()
        if self.thread is None:
            thread = threading.Thread(target=self.work, name="backup", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # none is to be had; perhaps at the next checkpoint
                self.has_failed(step, str(error))
            else:
                self.thread = thread

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
                self.has_failed(job[0], in_words(error))
                self.rest(pause)
                pause *= 2
            else:
                self.has_copied(job)
                pause = FIRST_PAUSE
            del job  # its files are memory

    def has_failed(self, step: int, reason: str) -> None:
        """Notes that a copy could not be made; only the first of several times is news."""
        with self.changed:
            if not self.trouble:
                self.news.append(
                    f"step {step} could not be copied to {self.place} ({reason}); it is tried again"
                )
            self.trouble = reason
            self.changed.notify_all()

    def has_copied(self, job: tuple[int, Mapping[str, bytes]]) -> None:
        """Notes that a copy was made."""
        with self.changed:
            if self.trouble:
                self.news.append(f"{self.place} has step {job[0]}, after all")
            self.trouble = ""
            if self.waiting is job:
                self.waiting = None
            self.changed.notify_all()

    def rest(self, seconds: float) -> None:
        """Waits, but never longer than `longest_pause`, even if that is lowered meanwhile."""
        with self.changed:
            seconds = min(seconds, self.longest_pause)
            self.changed.wait_for(lambda: self.longest_pause < seconds, timeout=seconds)

    def put(self, step: int, files: Mapping[str, bytes]) -> None:
        """Copies one checkpoint and removes all copies but the newest whole ones.

        Newer ones stay unless they are damaged: they may be another machine's.
        """
        assert self.place is not None
        steps = self.steps()
        self.check_ours([other for other in steps if other not in self.damaged], files)
        older = [other for other in steps if other < step and other not in self.damaged]
        damaged = [other for other in steps if other != step and other in self.damaged]
        whole = dict(files) | {MANIFEST: manifest(files)}
        obsolete = [checkpoint_name(old) for old in older[: -(KEPT - 1)] + damaged]
        self.place.replace(checkpoint_name(step), whole, obsolete)
        self.damaged.discard(step)

    def check_ours(self, steps: Sequence[int], files: Mapping[str, bytes]) -> None:
        """Refuses to add to another run's copies: each of the two would remove the other's.

        A place is empty when a run begins, but another may have begun at the same time. Whose copy
        is the newest goes on, and the other one is told.

        Raises:
            ValueError: naming the settings in which they differ.
        """
        if not steps:
            return
        assert self.place is not None
        folder = checkpoint_name(steps[-1])
        if CONFIG not in self.place.folders()[folder]:
            return  # damaged since, so that nobody can tell
        theirs = settings_in(self.place.read_file(folder, CONFIG))
        if different := differences(theirs, settings_in(files[CONFIG])):
            raise ValueError(f"another run is copied there: {', '.join(different)}")

    def finish(self, is_urgent: Callable[[], bool]) -> str:
        """Waits until the last checkpoint is copied, or it is clear that it cannot be.

        A copy that is being made and does not fail is waited for however long it takes.

        Args:
            is_urgent: whether the machine is about to go.

        Returns:
            What is wrong; nothing if all is copied.
        """
        started, urgent_since = time.monotonic(), None
        with self.changed:
            self.longest_pause = min(self.longest_pause, 5.0)  # ends a longer one
            self.changed.notify_all()
            while self.waiting is not None:
                now = time.monotonic()
                if is_urgent():
                    urgent_since = now if urgent_since is None else urgent_since
                    if now > urgent_since + URGENT_SECONDS:
                        return self.trouble or "it takes too long"
                elif self.trouble and now > started + PATIENCE:
                    return self.trouble
                self.changed.wait(0.1)
        return ""


def in_words(error: Exception) -> str:
    """What an error says, or what it is called."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def in_few_words(text: str) -> str:
    """The beginning of a text, for a progress bar."""
    return text if len(text) <= 40 else f"{text[:37]}..."
