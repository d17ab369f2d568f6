"""What is left of an export that fails: kills at every line, full disks, damaged writes.

About 20 seconds. Seen to fail when the temporary folder was left behind after an error; so were the
folders made above it; what a killed export had left was not removed; the files were written
straight into the folder; a file was not read again after it was written; the small files were
written without waiting for the disk.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exports import Pair, contents, make_pair
from small_runs import litter
from test_durable import killed_at

import export

SHARDS = 100_000  # bytes; makes two files of the weights of the small model
FILES = 5  # with config.json, generation_config.json and tokenizer.json


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory) -> dict[str, bytes]:
    """The files of an export that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "merged"
    pair.merge(folder, "bf16", 20_000)
    return contents(folder)


def test_a_kill_at_any_line_leaves_the_whole_folder_or_none(pair, whole, tmp_path):
    """And the next attempt succeeds, leaving no trace of the first."""
    line, was_killed, seen = 0, True, set()
    while was_killed:
        folder = tmp_path / str(line) / "merged"
        merge = lambda f=folder: pair.merge(f, "bf16", 20_000)  # noqa: E731
        was_killed = killed_at(line, False, merge)
        seen.add("whole" if folder.exists() else "unfinished" if litter(tmp_path) else "nothing")
        if folder.exists():
            assert contents(folder) == whole
        else:
            merge()
        assert contents(folder) == whole and not litter(tmp_path)
        line += 7 if line else 1
    assert line > 100 and seen == {"whole", "unfinished", "nothing"}


# --- errors of the system ----------------------------------------------------------------------


class Failing(io.BufferedWriter):
    """A file of which every write may fail; half of what was to be written is then there."""

    may_fail: Callable[[], bool]
    error: int

    def write(self, content: Any) -> int:
        if self.may_fail():
            super().write(bytes(content)[: len(content) // 2])
            raise OSError(self.error, os.strerror(self.error))
        return super().write(content)


def fail_at(patch: pytest.MonkeyPatch, place: str, call: int, error: int) -> Iterator[int]:
    """Makes the call with this number fail, of writes or of an operation of the system."""
    count = itertools.count()
    if place != "write":
        function = getattr(os, place)

        def failing(*arguments: Any, **more: Any) -> Any:
            if next(count) == call:
                raise OSError(error, os.strerror(error))
            return function(*arguments, **more)

        patch.setattr(os, place, failing)
        return count
    kind = type("Kind", (Failing,), {"error": error, "may_fail": lambda self: next(count) == call})
    opened = Path.open

    def open_file(self: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if mode != "wb":
            return opened(self, mode, *arguments, **more)
        return kind(io.FileIO(self, "wb"))

    patch.setattr(Path, "open", open_file)
    return count


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("place", ["write", "fsync", "rename", "mkdir"])
def test_an_error_of_the_system_is_told_in_a_line_and_leaves_nothing(
    pair, tmp_path, monkeypatch, capsys, place, error
):
    """Neither the folder, nor the temporary one, nor those above it that were made for it."""
    told = 0
    for call in itertools.count():
        folder = tmp_path / "a" / "b" / "c"
        arguments = [str(pair.adapter), "--model", str(pair.base), "--merged", str(folder)]
        with monkeypatch.context() as patch:
            count = fail_at(patch, place, call, error)
            status = export.command([*arguments, "--max-shard-size", f"{SHARDS}B"])
        err = capsys.readouterr().err
        if next(count) <= call:
            assert status == 0
            break
        if status == 0:
            assert place == "fsync"  # a folder's own, as some file systems have none
            shutil.rmtree(tmp_path / "a")
            continue
        told += 1
        assert status == 2 and err.count("\n") == 1 and len(err) <= 300, err
        assert err.startswith(f"export.py: {folder} could not be written ({os.strerror(error)})")
        assert "nothing is left of it; make room, or choose another place" in err
        assert list(tmp_path.iterdir()) == []
    # Writes: a header and at least one tensor in each of two files of weights, and three others.
    assert told >= {"write": 2 * 2 + 3, "fsync": FILES, "rename": 1, "mkdir": 4}[place]
    assert folder.is_dir() and not litter(tmp_path)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("where", [0, -1])
def test_a_file_that_is_not_what_was_written_is_noticed(
    pair, tmp_path, monkeypatch, capsys, name, where
):
    """One bit differs, as after a write that a network drive or a bad disk lost."""
    sync, damaged = os.fsync, []

    def damaging(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)
        if path.name == name:
            content = bytearray(path.read_bytes())
            content[where] ^= 1
            path.write_bytes(content)
            damaged.append(path)

    monkeypatch.setattr(os, "fsync", damaging)
    folder = tmp_path / "merged"
    arguments = [str(pair.adapter), "--model", str(pair.base), "--merged", str(folder)]
    assert export.command([*arguments, "--max-shard-size", f"{SHARDS}B"]) == 2
    assert "could not be written (it is not what was written)" in capsys.readouterr().err
    assert damaged and list(tmp_path.iterdir()) == []
