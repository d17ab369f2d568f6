"""A repo on the Hub as a place for copies of checkpoints; `lora/backup.py` says what a copy is.

Each copy is one commit, which also removes the obsolete ones: whoever looks sees it whole or not at
all. What was removed stays in the repo's history and counts as used storage until the repo is
deleted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from data.upload import commit_files, list_repo, open_repo, read_repo_file

COPY = re.compile(r"step-(\d{6,})/([^/]+)")


class HubPlace:
    """Copies in a private repo.

    Args:
        id: the repo's, as USER/NAME.
    """

    def __init__(self, id: str) -> None:
        self.id = id

    def __str__(self) -> str:
        return f"hub:{self.id}"

    def open(self) -> None:
        """Makes sure that there is a repo of ours; see `open_repo` for what it refuses."""
        open_repo(self.id, private=True)

    def steps(self) -> list[int]:
        """After how many steps there are copies, the oldest first."""
        return sorted(self.copies())

    def read(self, step: int) -> dict[str, bytes]:
        """All files of a copy, by their names."""
        commit, _ = list_repo(self.id)
        return {
            name: read_repo_file(self.id, commit, f"{folder_of(step)}{name}")
            for name in self.copies().get(step, ())
        }

    def read_file(self, step: int, name: str) -> bytes:
        """One file of a copy."""
        commit, _ = list_repo(self.id)
        return read_repo_file(self.id, commit, f"{folder_of(step)}{name}")

    def replace(self, step: int, files: Mapping[str, bytes], obsolete: Collection[int]) -> None:
        """Adds a copy and removes the obsolete ones, at once."""
        added = {f"{folder_of(step)}{name}": content for name, content in files.items()}
        commit_files(self.id, added, f"Step {step}", delete=[folder_of(old) for old in obsolete])

    def copies(self) -> dict[int, list[str]]:
        """The names of each copy's files."""
        _, names = list_repo(self.id)
        found: dict[int, list[str]] = {}
        for name in names:
            if match := COPY.fullmatch(name):
                found.setdefault(int(match[1]), []).append(match[2])
        return found


def folder_of(step: int) -> str:
    """The folder of the copy after `step` steps."""
    return f"step-{step:06d}/"
