"""Two exports to one place, and what a killed one has left: exactly one of them writes.

Seen to fail when the temporary folder was not locked: the second removed the first's files, and
half a folder got the real name; when a link under the temporary name was followed; when a folder
that was renamed or removed between being opened and being locked counted as the temporary one;
when what had come into being meanwhile was written over; when the lock was not freed; when a
killed one's files stayed in the folder; and when another's folder under the same name was removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import litter, status

from lora import locks
from publish import new_output
from publish.new_output import claimed, new_file, new_folder

KINDS = pytest.mark.parametrize("make", [new_folder, new_file])


def write(temporary: Path, text: str) -> None:
    place = temporary / "part" if temporary.is_dir() else temporary
    place.write_text(text)


def read(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


def in_another_process(action: Callable[[], None]) -> int:
    """9 if it was refused, 0 if not."""
    process = os.fork()
    if process == 0:
        ended = 99
        try:
            action()
            ended = 0
        except ValueError as refused:
            assert "another process is writing" in str(refused)
            ended = 9
        finally:
            os._exit(ended)
    return status(process)


@KINDS
def test_a_second_one_is_refused_and_harms_nothing(tmp_path, make):
    path = tmp_path / "model"

    def second() -> None:
        with make(path) as temporary:
            write(temporary, "second")

    with make(path) as temporary:
        write(temporary, "first")
        assert in_another_process(second) == 9
        assert in_another_process(second) == 9, "the refused one has left the lock as it was"
    assert read(path) == "first" and litter(tmp_path) == []


@KINDS
def test_what_a_killed_one_has_left_hinders_nobody(tmp_path, make):
    def killed() -> None:
        with make(tmp_path / "model") as temporary:
            write(temporary, "half")
            if temporary.is_dir():
                (temporary / "more").touch()
            os._exit(0)

    assert in_another_process(killed) == 0
    assert ".unfinished-model" in litter(tmp_path)
    with make(tmp_path / "model") as temporary:
        write(temporary, "whole")
    assert read(tmp_path / "model") == "whole" and litter(tmp_path) == []
    assert make is new_file or os.listdir(tmp_path / "model") == ["part"]


@KINDS
@pytest.mark.parametrize("what", ["link", "link to a folder", "dangling link", "pipe", "file"])
def test_what_stands_under_the_temporary_name_is_removed_and_not_followed(tmp_path, make, what):
    stranger, elsewhere = tmp_path / ".unfinished-model", tmp_path / "elsewhere"
    mine = elsewhere
    if what == "link to a folder":
        elsewhere.mkdir()
        mine = elsewhere / "mine"
    if what != "dangling link":
        mine.write_text("mine")
    if what == "pipe":
        os.mkfifo(stranger)
    elif what == "file":
        stranger.touch()
    else:
        stranger.symlink_to(elsewhere)
    with make(tmp_path / "model") as temporary:
        write(temporary, "whole")
    assert read(tmp_path / "model") == "whole" and litter(tmp_path) == []
    assert not mine.exists() if what == "dangling link" else mine.read_text() == "mine"


@KINDS
def test_one_that_ends_between_anothers_opening_and_locking_is_told_from_a_dead_one(
    tmp_path, monkeypatch, make
):
    """The second then holds the lock of what has got the real name, and must not empty that."""
    path, first = tmp_path / "model", make(tmp_path / "model")
    write(first.__enter__(), "first")
    monkeypatch.setattr(
        new_output, "try_lock", lambda d: (first.__exit__(None, None, None), locks.try_lock(d))[1]
    )
    with pytest.raises(ValueError, match="was made by another process meanwhile"):
        make(path).__enter__()
    assert read(path) == "first" and litter(tmp_path) == []


@KINDS
def test_what_has_come_into_being_meanwhile_is_not_written_over(tmp_path, make):
    with make(tmp_path / "model") as temporary:
        write(temporary, "first")
    with pytest.raises(ValueError, match="was made by another process meanwhile"):
        make(tmp_path / "model").__enter__()
    assert read(tmp_path / "model") == "first" and litter(tmp_path) == []


@KINDS
def test_nothing_stays_open_and_nothing_is_left_of_what_cannot_begin(tmp_path, make, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a", "b"):
        with make(tmp_path / name) as temporary:
            write(temporary, name)
    assert len(os.listdir("/proc/self/fd")) == before

    def failing(*more: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(new_output.os, "open", failing)
        with pytest.raises(OSError, match="could not be written .Too many open files., and not"):
            make(tmp_path / "deep" / "model").__enter__()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_another_process_has_made_meanwhile_under_the_temporary_name_stays(tmp_path):
    folder = tmp_path / ".unfinished-model"
    with claimed(folder):
        folder.rename(tmp_path / "model")
        folder.mkdir()
    assert folder.exists()


def test_two_at_once_may_write_beside_each_other(tmp_path):
    with new_folder(tmp_path / "a") as one, new_file(tmp_path / "b") as other:
        write(one, "one")
        write(other, "other")
    assert (read(tmp_path / "a"), read(tmp_path / "b")) == ("one", "other")
