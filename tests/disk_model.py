"""What a folder holds after each operation, and what would be left of it if the power went then.

While a block is watched, Python reports every call of its own functions that can change a file or a
folder, whichever library makes it (`threading.setprofile`, `sys.setprofile`), and the folder is
looked at after each. From POSIX a program may expect this much, and no more:

    - the content of a file, as it was at its last fsync, is there, if the file's name is;
    - the names in a folder are those of its last fsync, or of any moment since.

All else is up to the system: each file has what it had at its last fsync, what it had in the end,
or half of it; each folder the names of one moment since its last fsync. Nothing is in order.
"""

from __future__ import annotations

import io
import os
import posix
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = {
    *("open", "write", "writelines", "flush", "close", "__exit__", "truncate", "ftruncate"),
    *("rename", "replace", "mkdir", "rmdir", "remove", "unlink", "link", "symlink", "sendfile"),
}


@dataclass(frozen=True)
class Moment:
    """What the system knows at one moment: nodes are files or folders, whatever their names."""

    names: dict[int, list[dict[str, int]]]  # of each folder, from its last fsync until now
    contents: dict[int, list[bytes]]  # of each file, at its last fsync and now
    root: int

    def now(self, folder: Path) -> None:
        """Makes `folder` what it is as long as the power is on: a process may have been killed."""
        self.write(self.root, folder, lambda versions: versions[-1], lambda versions: versions[-1])

    def synced_only(self, folder: Path) -> None:
        """As if nothing had reached the disk but what the program waited for."""
        self.write(self.root, folder, lambda versions: versions[0], lambda versions: versions[0])

    def names_first(self, folder: Path) -> None:
        """As if the disk had all names, and of the contents what the program waited for."""
        self.write(self.root, folder, lambda versions: versions[-1], lambda versions: versions[0])

    def at_random(self, folder: Path, seed: int) -> None:
        """Each file and each folder as it pleases."""
        rng = random.Random(seed)

        def content(versions: list[bytes]) -> bytes:
            half = versions[-1][: len(versions[-1]) // 2]
            return rng.choice([*versions, half]) if len(versions) > 1 else versions[0]

        self.write(self.root, folder, rng.choice, content)

    def write(self, node: int, path: Path, names: Any, content: Any) -> None:
        """Makes `path` one of the versions of a node, chosen by the two functions."""
        if node in self.contents:
            path.write_bytes(content(self.contents[node]))
            return
        path.mkdir()
        for name, inside in names(self.names[node]).items():
            self.write(inside, path / name, names, content)


@dataclass
class Watcher:
    """Follows a folder from operation to operation."""

    root: Path
    moments: list[Moment] = field(default_factory=list)
    nodes: dict[int, int] = field(default_factory=dict)  # by the inode; one may be used again
    names: dict[int, list[dict[str, int]]] = field(default_factory=dict)
    contents: dict[int, list[bytes]] = field(default_factory=dict)
    count: int = 0

    def look(self) -> None:
        """Takes down what is there now, if it differs from what was there before."""
        present: dict[int, int] = {}
        root = self.look_at(self.root, present)
        self.nodes = present
        moment = Moment({n: v[:] for n, v in self.names.items()}, dict(self.contents), root)
        if not self.moments or moment != self.moments[-1]:
            self.moments.append(moment)

    def look_at(self, path: Path, present: dict[int, int]) -> int:
        """The same of one file or folder; returns its node."""
        inode = path.stat().st_ino
        node = self.nodes.get(inode)
        if node is None or (node in self.names) != path.is_dir():
            self.count = node = self.count + 1
        present[inode] = node
        if path.is_dir():
            inside = {one.name: self.look_at(one, present) for one in sorted(path.iterdir())}
            versions = self.names.setdefault(node, [{}] if self.moments else [])
            if not versions or versions[-1] != inside:
                versions.append(inside)
        else:
            content = path.read_bytes()
            kept = self.contents.get(node, [b"" if self.moments else content])[0]
            self.contents[node] = [kept] if content == kept else [kept, content]
        return node

    def synced(self, descriptor: int) -> None:
        """What is in this file, or the names in this folder, are on disk from now on."""
        self.look()
        node = self.nodes.get(os.fstat(descriptor).st_ino)
        for versions in (self.names, self.contents):
            if node in versions:
                versions[node] = versions[node][-1:]
        self.look()


@contextmanager
def watched(root: Path) -> Iterator[list[Moment]]:
    """The moments of a folder while a block runs; what is there before is on disk."""
    watcher, fsync, one_thread_at_a_time = Watcher(root), os.fsync, threading.RLock()
    watcher.look()

    def called(frame: object, event: str, function: Any) -> None:
        owner = getattr(function, "__self__", None)  # an open file, or the module of a function
        is_of_files = owner is posix or owner is io.open.__self__ or isinstance(owner, io.IOBase)
        if event == "c_return" and is_of_files and function.__name__ in CHANGES:
            with one_thread_at_a_time:
                watcher.look()

    def synced(descriptor: int) -> None:
        with one_thread_at_a_time:
            fsync(descriptor)
            watcher.synced(descriptor)

    before = sys.getprofile()
    os.fsync = synced
    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield watcher.moments
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
        os.fsync = fsync
