"""A new folder or file, which appears whole or not at all: what an export writes.

It is written under a temporary name beside its own and renamed in the end. The temporary one is
locked meanwhile, so that a second export to the same place is refused, and what a killed one has
left is known and removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from data.locks import locked
from lora.durable import UNFINISHED, flush_folder, make_folder, remove_unfinished
from lora.locks import try_lock


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that gets the name `folder` when this block is left without an error.

    `folder` must not exist, or be empty. Whoever fills the temporary one flushes each file.

    Raises:
        OSError: what was raised within, in words that name `folder`; nothing is left of it.
        ValueError: if another process is writing it.
    """
    with unfinished(folder.resolve(), Path.mkdir) as temporary:
        yield temporary
        flush_folder(temporary)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file that gets the name `path` as a `new_folder` does."""
    with unfinished(path.resolve(), Path.touch) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def unfinished(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """What `make` makes beside `path`, renamed to it in the end or removed."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    made: list[Path] = []
    try:
        made += [parent for parent in path.parents if not parent.exists()]  # the deepest first
        make_folder(path.parent)
        with claimed(temporary, make):
            try:
                yield temporary
                temporary.rename(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    remove_unfinished(temporary)
                raise
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
    flush_folder(path.parent)


@contextlib.contextmanager
def claimed(temporary: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """Makes it anew and holds its lock.

    Raises:
        ValueError: if another process holds it.
    """
    with locked(temporary.parent):  # from looking to locking, nobody comes in between
        if os.path.lexists(temporary) and not is_free(temporary):
            name = temporary.name.removeprefix(UNFINISHED)
            raise ValueError(
                f"{temporary.with_name(name)} is being written by another process; wait for it, "
                "or choose another place"
            )
        remove_unfinished(temporary)
        make(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try_lock(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def is_free(temporary: Path) -> bool:
    """Whether nobody holds its lock: it is what a killed process has left."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True  # no process of ours has made a link, or what cannot be opened
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)
