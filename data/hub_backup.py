"""A repo on the Hub as a place for copies of checkpoints; `lora/backup.py` says what a copy is.

Each copy is one commit, which also removes the obsolete ones: whoever looks sees it whole or not at
all. What was removed stays in the repo's history and counts as used storage until the repo is
deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from data.upload import commit_files, list_repo, open_repo, read_repo_file


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

    def folders(self) -> dict[str, set[str]]:
        """All folders of the repo, and the names of their files."""
        _, names = list_repo(self.id)
        found: dict[str, set[str]] = {}
        for name in names:
            folder, slash, file = name.partition("/")
            if slash:
                found.setdefault(folder, set()).add(file)
        return found

    def read(self, folder: str) -> dict[str, bytes]:
        """All files of a folder, by their names."""
        commit, names = list_repo(self.id)
        inside = [name for name in names if name.startswith(f"{folder}/")]
        return {name.partition("/")[2]: read_repo_file(self.id, commit, name) for name in inside}

    def read_file(self, folder: str, name: str) -> bytes:
        """One of them."""
        commit, _ = list_repo(self.id)
        return read_repo_file(self.id, commit, f"{folder}/{name}")

    def replace(self, folder: str, files: Mapping[str, bytes], obsolete: Collection[str]) -> None:
        """Adds a folder and removes the obsolete ones, at once."""
        added = {f"{folder}/{name}": content for name, content in files.items()}
        commit_files(self.id, added, f"Add {folder}", delete=[f"{old}/" for old in obsolete])
