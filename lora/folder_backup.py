"""A folder as a place for copies of checkpoints; `lora/backup.py` says what a copy is."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

from lora.checkpoint_folder import CHECKPOINT_NAME
from lora.durable import (
    MANIFEST,
    UNFINISHED,
    flush_folder,
    publish_folder,
    remove_folder,
    remove_leftovers,
    verify_folder,
    verify_written,
)


class FolderPlace:
    """Copies in a folder: another disk, or a mounted drive.

    Args:
        path: the folder; is made if need be. The one above must be there, or a drive that is
            mounted there and just now is not would be taken for an empty one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        parent = self.path.resolve().parent
        if not parent.is_dir():
            raise ValueError(
                f"--backup is {self.path}, but there is no folder {parent}; mount the drive, make "
                "the folder, or for a repo on the Hub write hub:USER/NAME"
            )
        place = self.path if self.path.exists() else parent
        probe = place / f"{UNFINISHED}probe"
        try:
            probe.mkdir(exist_ok=True)
            probe.rmdir()
        except OSError as error:
            raise ValueError(
                f"--backup is {self.path}, which cannot be written ({error.strerror}); "
                "choose another folder"
            ) from None
        if place == self.path:
            remove_leftovers(self.path, CHECKPOINT_NAME)  # among them may be the only whole copy

    def folders(self) -> dict[str, set[str]]:
        if not self.path.is_dir():
            return {}
        found = (folder for folder in self.path.iterdir() if folder.is_dir())
        return {folder.name: {file.name for file in folder.iterdir()} for folder in found}

    def read(self, folder: str) -> dict[str, bytes]:
        files = (file for file in (self.path / folder).iterdir() if file.is_file())
        return {file.name: file.read_bytes() for file in files}

    def read_file(self, folder: str, name: str) -> bytes:
        return (self.path / folder / name).read_bytes()

    def replace(self, folder: str, files: Mapping[str, bytes], obsolete: Collection[str]) -> None:
        if not self.path.is_dir():
            self.path.mkdir()  # never those above it: see `open`
            flush_folder(self.path.parent)
        remove_leftovers(self.path, CHECKPOINT_NAME)
        if not self.has(folder, files[MANIFEST]):
            contents = {name: content for name, content in files.items() if name != MANIFEST}
            written = publish_folder(self.path / folder, contents)
            # A drive may rename what it does not have yet.
            verify_written(self.path / folder, written)
        for old in obsolete:
            with contextlib.suppress(OSError):  # the new copy is there all the same
                remove_folder(self.path / old)

    def has(self, folder: str, expected: bytes) -> bool:
        """Whether this very copy is there already: replacing it could only harm it."""
        with contextlib.suppress(ValueError, OSError):
            verify_folder(self.path / folder)
            return (self.path / folder / MANIFEST).read_bytes() == expected
        return False
