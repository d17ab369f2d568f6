"""A new folder or file, which appears whole or not at all: what an export writes.

It is made under a temporary name beside its own and renamed in the end. A folder of that name is
locked as long as somebody writes: a second export to the same place is refused, and what a killed
one has left is known by its free lock, and used again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lora.durable import (
    UNFINISHED,
    flush_folder,
    make_folder,
    remove_leftovers,
    remove_unfinished,
)
from lora.locks import try_lock


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that gets the name `folder` when this block is left without an error.

    `folder` must not exist, or be empty. Whoever fills the temporary one flushes each file.

    Raises:
        OSError: what was raised within, in words that name `folder`; nothing is left of it.
        ValueError: if another process is writing it, or has written it meanwhile.
    """
    folder = folder.resolve()
    with temporary_folder(folder) as temporary:
        yield temporary
        flush_folder(temporary)
        temporary.rename(folder)
    flush_folder(folder.parent)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path for a file that gets the name `path` as a `new_folder` does.

    The file stands beside a folder that is nothing but its lock. Raises the same.
    """
    path = path.resolve()
    file = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    with temporary_folder(path) as lock:
        remove_leftovers(path.parent, re.compile(rf"\d+-{re.escape(path.name)}"))
        try:
            yield file
            with file.open("rb") as written:
                os.fsync(written.fileno())
            lock.rmdir()  # first, or a kill between the two would leave it for good
            file.rename(path)
        except BaseException:
            remove_unfinished(file)
            raise
    flush_folder(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, whose parents it makes; in the end nothing is left of it."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    made: list[Path] = []
    try:
        made += [parent for parent in path.parents if not parent.exists()]  # the deepest first
        make_folder(path.parent)
        with claimed(temporary):
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise ValueError(f"{path} was made by another process meanwhile; choose another")
            yield temporary
    except BaseException as error:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if not isinstance(error, OSError):
            raise
        raise OSError(
            f"{path} could not be written ({error.strerror or error}), and nothing is left of it; "
            "make room, or choose another place"
        ) from None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder, or empties a dead process's, and keeps its lock; removes it in the end.

    Raises:
        ValueError: if a living process has its lock.
    """
    descriptor = locked_folder(folder)
    try:
        for leftover in folder.iterdir():
            remove_unfinished(leftover)
        yield
    finally:
        if is_there(descriptor, folder):  # and not renamed, or by now another process's
            remove_unfinished(folder)
        os.close(descriptor)


def locked_folder(folder: Path) -> int:
    """The descriptor that holds the lock of a folder of this name, which is made if need be."""
    while True:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)  # no process of ours has made a link, or a file
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
        if not try_lock(descriptor):
            os.close(descriptor)
            name = folder.with_name(folder.name.removeprefix(UNFINISHED))
            raise ValueError(f"another process is writing {name}; wait, or choose another place")
        if is_there(descriptor, folder):
            return descriptor
        os.close(descriptor)  # its owner has just renamed or removed it


def is_there(descriptor: int, path: Path) -> bool:
    """Whether what is open has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
