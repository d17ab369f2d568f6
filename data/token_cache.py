"""Token files that are made once: found by what they are made of, and checked before use.

    llama-lora/
      KEY/              KEY is a hash of all that decides what is in the files
        tokens.bin      the ids of all conversations end to end, uint32
        targets.bin     for each of them whether it is to be learnt, one byte
        index.bin       for each conversation its length, its targets and its digest
        report.json     what was read, kept and dropped
        manifest.json   size and sha256 of the above, written last
      building-*/       one that is being made; renamed to KEY when it is whole

A process that is killed leaves a folder under a name that nobody looks for; after a day it counts
as a dead one's, and the next that makes files removes it. Two that make the same files at once each
make their own, and the first to finish publishes them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from data.chat_format import ChatFormat, Message
from data.vocabulary import TokenizerJson

T = TypeVar("T")

FORMAT = 1  # to be raised when the same data would give other files
TOKENS, TARGETS, INDEX, REPORT = "tokens.bin", "targets.bin", "index.bin", "report.json"
FILES = (TOKENS, TARGETS, INDEX, REPORT)
MANIFEST = "manifest.json"
PREFIX = "building-"
ABANDONED_AFTER = 24 * 3600  # seconds

# Rendered into the key, so that a date, a default system text and a BOS count as well as the name.
PROBE = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]


def default_cache() -> Path:
    """The folder for what can be made again, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llama-lora"


def cache_key(
    files: Sequence[Path], chat_format: ChatFormat, max_length: int, train_on: str
) -> str:
    """A hash of everything that decides which tokens and targets come out."""
    with_system = [Message("system", "s"), *PROBE]
    probe = chat_format.render_batch([PROBE, with_system])
    parts = {
        "format": FORMAT,
        "files": [sha256_of(file) for file in files],
        "suffixes": [file.suffix.lower() for file in files],
        "chat_format": [chat_format.name, *(rendered.ids for rendered in probe)],
        "vocabulary": vocabulary_sha256(chat_format),
        "max_length": max_length,
        "train_on": train_on,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def vocabulary_sha256(chat_format: ChatFormat) -> str:
    """The hash of a tokenizer's vocabulary, with its rules, as it was read."""
    vocabulary = chat_format.tokenizer.vocabulary
    if isinstance(vocabulary, TokenizerJson):
        content = vocabulary.backend.to_str().encode()
    else:
        content = vocabulary.backend.serialized_model_proto()
    return hashlib.sha256(content).hexdigest()


def sha256_of(file: Path) -> str:
    """The hash of a file's content."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None


def load_or_make(folder: Path, make: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """What `load` makes of a folder in the cache; `make` fills it if it is not there whole.

    What was just made is opened before it is published, so that nobody can come in between.

    Raises:
        ValueError: if the cache cannot be written, or whatever `make` raises.
    """
    if os.path.lexists(folder):
        damage = damage_of(folder)
        if damage is None:
            return load(folder)
        print(f"{folder} is damaged ({damage}): making it again", file=sys.stderr)
    try:
        with building_folder(folder.parent) as new:
            make(new)
            seal(new)
            loaded = load(new)
            publish(new, folder)
            return loaded
    except OSError as error:
        raise ValueError(
            f"the cache {folder.parent} cannot be written ({error.strerror}): make room, or set "
            "XDG_CACHE_HOME to another folder"
        ) from None


@contextmanager
def building_folder(cache: Path) -> Iterator[Path]:
    """A new folder in the cache, removed again unless it was published."""
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(PREFIX + "*"):
        with suppress(OSError):  # another process may be removing it
            if time.time() - old.stat().st_mtime > ABANDONED_AFTER:
                remove(old)
    new = Path(tempfile.mkdtemp(prefix=PREFIX, dir=cache))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a folder, or the file or link that somebody has put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits for the lock of a folder and holds it; it is gone with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network drive that knows no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def seal(folder: Path) -> None:
    """Puts the files of a folder on disk for good, and then says so in its manifest."""
    files = {}
    for name in FILES:
        sync(folder / name)
        files[name] = {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    (folder / MANIFEST).write_text(json.dumps(files, indent=2) + "\n")
    sync(folder / MANIFEST)
    sync(folder)


def publish(new: Path, folder: Path) -> None:
    """Gives a sealed folder its name, unless another process has put a whole one there.

    One process at a time: of two that find the same folder damaged, the second would otherwise take
    away what the first has put in its place.
    """
    damaged = Path(f"{new}-damaged")
    with locked(folder.parent):
        if os.path.lexists(folder):
            if damage_of(folder) is None:
                return
            folder.rename(damaged)
        new.rename(folder)
    with suppress(OSError):
        remove(damaged)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage_of(folder: Path) -> str | None:
    """What is wrong with a folder of the cache; None if its files are what its manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
        for name in FILES:
            size, announced = (folder / name).stat().st_size, files[name]["size"]
            if size != announced:
                return f"{name} is {size} bytes long instead of {announced}"
            if sha256_of(folder / name) != files[name]["sha256"]:
                return f"{name} was changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} or another file cannot be read"
    return None
