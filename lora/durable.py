"""Folders that appear on disk whole or not at all, and are checked before they are trusted.

A program may be killed, and a machine lose power, between any two operations. What makes it safe:

    1. The files are written into a folder with another name, each flushed to the disk itself.
    2. manifest.json, written last, names every file with its size and sha256.
    3. The folder gets its real name by one `rename`, which happens at once or not at all.

A rename can still outrun the contents, on network drives above all. So a reader believes nothing
but the manifest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lora.beside import beside

MANIFEST = "manifest.json"
SEAL = "sha256"  # the last entry of a sealed file
PLAIN_NAME = re.compile(r"\w[\w.-]*")  # of a file in a folder; nothing that leads elsewhere
LARGEST_MANIFEST = 2**20  # bytes; one of ours has a few hundred
PART = 2**20  # bytes that are read at a time
UNFINISHED = ".unfinished-"
REPLACED, REMOVED = f"{UNFINISHED}replaced-", f"{UNFINISHED}removed-"
# What reading a file raises that is not there; all else may pass.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError)


def publish_folder(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Makes `folder` hold exactly these files and their manifest, in place of what it held before.

    Returns:
        All that is in it, the manifest too.

    Raises:
        OSError: if the disk is full or cannot be written; what was there before is still there.
    """
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    replaced = folder.with_name(f"{REPLACED}{folder.name}")
    end_replacement(replaced)
    remove_folder(temporary)
    temporary.mkdir(parents=True)
    try:
        listing = beside(partial(manifest, files))  # hashing waits for nothing, writing does
        for name, content in files.items():
            write_file(temporary / name, content)
        written = {**files, MANIFEST: listing()}
        write_file(temporary / MANIFEST, written[MANIFEST])
        flush_folder(temporary)
        verify_written(temporary, written)
        if os.path.lexists(folder):
            folder.rename(replaced)
        temporary.rename(folder)
        flush_folder(folder.parent)
    except BaseException:
        remove_folder(temporary)
        end_replacement(replaced)
        raise
    remove_folder(replaced)
    return written


def verify_written(folder: Path, files: Mapping[str, bytes]) -> None:
    """Reads files that were just written, and compares them with what they should be.

    Raises:
        OSError: naming the first that is another one, or cannot be read.
    """
    for name, content in files.items():
        try:
            with naming(folder / name), (folder / name).open("rb") as file:
                is_whole = holds(file, content)
        except MISSING:
            raise OSError(errno.EIO, f"{name} is missing", str(folder / name)) from None
        if not is_whole:
            raise OSError(errno.EIO, f"{name} is not what was written", str(folder / name))


def holds(file: BinaryIO, content: bytes) -> bool:
    """Whether a file, from where it is read next, has exactly this content."""
    place = 0
    while part := file.read(PART):
        if not content.startswith(part, place):
            return False
        place += len(part)
    return place == len(content)


def end_replacement(replaced: Path) -> None:
    """Gives a folder that was to be replaced its name back, or removes it if the new one is there.

    A kill between the two renames leaves it as the only whole one.
    """
    folder = replaced.with_name(replaced.name.removeprefix(REPLACED))
    if os.path.lexists(folder):
        remove_unfinished(replaced)
    elif os.path.lexists(replaced):
        replaced.rename(folder)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A block whose errors name the file; writing and reading raise them without."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file part by part, waits until the disk has it, and reads it again.

    Raises:
        OSError: if it could not be written, or is not what was written.
    """
    written = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            written.update(part)
            del part  # or it would take its memory while the next one is made
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != written.digest():
            raise OSError(errno.EIO, "it is not what was written")


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in place of the old one; whoever reads sees the one or the other."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    try:
        write_file(temporary, content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, if need be; waits until the disk has them.

    Also those that are there: whoever made them may have been killed before they were on disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for one in (folder, *folder.parents):
        flush_folder(one.parent)


def flush_folder(folder: Path) -> None:
    """Waits until the disk has the names in a folder; some file systems cannot be asked to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Removes a folder if it is there. Under its old name it is either whole or gone."""
    if folder.name.startswith(UNFINISHED):
        remove_unfinished(folder)
    elif os.path.lexists(folder):
        doomed = folder.with_name(f"{REMOVED}{folder.name}")
        remove_unfinished(doomed)
        folder.rename(doomed)
        flush_folder(folder.parent)
        remove_unfinished(doomed)


def remove_unfinished(path: Path) -> None:
    """Removes what has a temporary name: a folder, a file, a link, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(parent: Path, names: re.Pattern[str]) -> None:
    """Removes what a killed program left unfinished in a folder, or puts it back.

    Args:
        parent: the folder.
        names: what it was to be called; all else is another program's.
    """
    for leftover in list(parent.iterdir()):
        for beginning in (REPLACED, REMOVED, UNFINISHED):
            name = leftover.name.removeprefix(beginning)
            if name != leftover.name and names.fullmatch(name):
                (end_replacement if beginning == REPLACED else remove_unfinished)(leftover)
                break


def manifest(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files."""
    listing = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    }
    return as_json({"files": listing})


def as_json(content: Mapping[str, Any]) -> bytes:
    """JSON to be read by people too."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def sealed(content: Mapping[str, Any]) -> bytes:
    """JSON that ends with its own sha256, so that any bit that changes in it can be told."""
    return as_json({**content, SEAL: hashlib.sha256(as_json(content)).hexdigest()})


def is_sealed(text: bytes) -> bool:
    """Whether this is what `sealed` returned, to the bit."""
    try:
        content = json.loads(text)
        del content[SEAL]
        return sealed(content) == text
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def verify_folder(folder: Path, free: Collection[str] = ()) -> None:
    """Makes sure that a folder holds what its manifest says.

    What else is in it does not matter: file managers leave files of their own everywhere.

    Args:
        folder: the folder.
        free: names of files that anybody may change.

    Raises:
        ValueError: naming the first file that is missing or different.
        OSError: if a file is there and cannot be read, which may pass.
    """
    check_content(folder, partial(size_of, folder), lambda n: (folder / n).read_bytes(), free)


def size_of(folder: Path, name: str) -> int:
    """The size of a regular file; reading a pipe would never end."""
    if not (folder / name).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / name))
    return (folder / name).stat().st_size


def verify_files(where: object, files: Mapping[str, bytes]) -> list[str]:
    """The same of files that were read already; `where` says from where. Returns their names."""
    return check_content(where, lambda name: len(files[name]), files.__getitem__)


def check_content(
    where: object,
    size_of: Callable[[str], int],
    read: Callable[[str], bytes],
    free: Collection[str] = (),
) -> list[str]:
    """Compares files with their manifest; returns the names in it. Raises ValueError."""
    try:
        if size_of(MANIFEST) > LARGEST_MANIFEST:
            raise ValueError
        listing = json.loads(read(MANIFEST))["files"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in listing.items()}
    except (*MISSING, ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{where} is damaged: {MANIFEST} cannot be read") from None
    for name, (size, sha256) in expected.items():
        if name in free:
            continue
        try:
            may_be = PLAIN_NAME.fullmatch(name) and size_of(name) == size
            is_whole = may_be and hashlib.sha256(read(name)).hexdigest() == sha256
        except MISSING:
            raise ValueError(f"{where} is damaged: {name} is missing") from None
        if not is_whole:
            raise ValueError(f"{where} is damaged: {name} is not what was written")
    return list(expected)
