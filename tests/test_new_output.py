"""Two exports to one place, and what a killed one has left: exactly one of them writes.

Seen to fail when the temporary folder was not locked: the second removed the first's files, and
half a folder got the real name; and when a link under the temporary name was followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import litter, status

from publish.new_output import new_file, new_folder

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
            assert "is being written by another process; wait for it" in str(refused)
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
            os._exit(0)

    assert in_another_process(killed) == 0
    assert litter(tmp_path) == [".unfinished-model"]
    with make(tmp_path / "model") as temporary:
        write(temporary, "whole")
    assert read(tmp_path / "model") == "whole" and litter(tmp_path) == []


@KINDS
@pytest.mark.parametrize("what", ["link", "dangling link", "pipe"])
def test_what_stands_under_the_temporary_name_is_removed_and_not_followed(tmp_path, make, what):
    stranger, elsewhere = tmp_path / ".unfinished-model", tmp_path / "elsewhere"
    if what == "link":
        elsewhere.write_text("mine")
    if what == "pipe":
        os.mkfifo(stranger)
    else:
        stranger.symlink_to(elsewhere)
    with make(tmp_path / "model") as temporary:
        write(temporary, "whole")
    assert read(tmp_path / "model") == "whole" and litter(tmp_path) == []
    assert elsewhere.exists() == (what == "link")
    assert what != "link" or elsewhere.read_text() == "mine"


def test_two_at_once_may_write_beside_each_other(tmp_path):
    with new_folder(tmp_path / "a") as one, new_file(tmp_path / "b") as other:
        write(one, "one")
        write(other, "other")
    assert (read(tmp_path / "a"), read(tmp_path / "b")) == ("one", "other")
