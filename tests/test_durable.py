"""Folders that appear whole or not at all: kills at every line, full disks, and order of syncs.

About 10 seconds. Seen to fail when: files were written straight into the folder; the old folder was
removed before the new one had its name; a file was not synced; an error left the temporary folder
behind; only sizes were compared.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from small_runs import status

from lora import durable
from lora.durable import (
    MANIFEST,
    UNFINISHED,
    publish_folder,
    remove_folder,
    replace_file,
    verify_folder,
)
from publish import new_output

OLD = {"weights": b"old" * 100, "state": b"1"}
NEW = {"weights": b"new!" * 99, "state": b"22", "more": b""}


def content(folder: Path) -> dict[str, bytes]:
    verify_folder(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_at(line: int, torn: bool, action: Any) -> bool:
    """Runs `action` in a process that is killed before the given line.

    Counted are the lines of durable.py and new_output.py as they are executed. With `torn`, a file
    that is being written has half its bytes, as if the system had not got further. Returns whether
    there was such a line.
    """
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # a forked process has none of the other threads, and would wait
        executed = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal executed
            if frame.f_code.co_filename not in (durable.__file__, new_output.__file__):
                return None
            if event == "line":
                executed += 1
                if executed > line:
                    if torn and frame.f_code.co_name == "write_file" and "file" in frame.f_locals:
                        path = frame.f_locals["path"]
                        path.write_bytes(frame.f_locals["content"][::2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            action()
        finally:
            os._exit(0)
    ended = status(process)
    assert ended in (0, -signal.SIGKILL)
    return ended != 0


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaces"])
def test_a_kill_at_any_line_leaves_the_old_the_new_or_what_is_known_as_unfinished(
    tmp_path, replaces, torn
):
    """And the next attempt succeeds, leaving no trace of the first."""
    line, was_killed, seen = 0, True, set()
    while was_killed:
        parent = tmp_path / str(line)
        parent.mkdir()
        folder = parent / "step-000007"
        if replaces:
            publish_folder(folder, OLD)
        was_killed = killed_at(line, torn, lambda f=folder: publish_folder(f, NEW))
        for path in parent.iterdir():
            if path.name.startswith(UNFINISHED):
                seen.add("unfinished")
            else:
                assert path == folder
                seen.add("new" if content(folder) == NEW else "old")
                assert content(folder) in ((OLD, NEW) if replaces else (NEW,))
        kept = parent / f"{UNFINISHED}replaced-step-000007"
        if replaces and not folder.exists():
            assert content(kept) == OLD, "the only whole copy is gone"
        publish_folder(folder, NEW)
        assert content(folder) == NEW and names(parent) == ["step-000007"]
        line += 1
    assert line > 40
    assert seen == {"unfinished", "new"} | ({"old"} if replaces else set())


def test_a_kill_at_any_line_of_a_removal_leaves_it_whole_or_gone(tmp_path):
    line, was_killed = 0, True
    while was_killed:
        folder = tmp_path / str(line) / "step-000007"
        publish_folder(folder, OLD)
        was_killed = killed_at(line, False, lambda f=folder: remove_folder(f))
        assert not folder.exists() or content(folder) == OLD
        remove_folder(folder)
        assert not folder.exists()
        line += 1
    assert line > 4


def test_a_kill_at_any_line_leaves_the_old_file_or_the_new(tmp_path):
    path = tmp_path / "config.json"
    line, was_killed = 0, True
    while was_killed:
        path.write_bytes(b"old")
        was_killed = killed_at(line, True, lambda: replace_file(path, b"new!"))
        assert path.read_bytes() in (b"old", b"new!")
        line += 1
    assert line > 6 and path.read_bytes() == b"new!" and names(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", range(4))
def test_an_error_while_writing_is_told_and_leaves_what_was_there(
    tmp_path, monkeypatch, call, error
):
    folder, whole, calls = tmp_path / "step-000007", durable.write_file, []
    publish_folder(folder, OLD)

    def write_file(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) > call:
            path.write_bytes(content[:1])
            raise OSError(error, os.strerror(error))
        whole(path, content)

    monkeypatch.setattr(durable, "write_file", write_file)
    with pytest.raises(OSError) as caught:
        publish_folder(folder, NEW)
    assert caught.value.errno == error
    assert content(folder) == OLD and names(tmp_path) == ["step-000007"]


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_an_error_of_the_system_leaves_what_was_there(tmp_path, monkeypatch, name):
    folder, calls = tmp_path / "step-000007", 0
    publish_folder(folder, OLD)
    while True:
        with monkeypatch.context() as patch:
            count = iter(range(100))
            function = getattr(os, name)

            def failing(*arguments: Any, count=count, function=function, calls=calls) -> Any:
                if next(count) == calls:
                    raise OSError(errno.EIO, "Input/output error")
                return function(*arguments)

            patch.setattr(os, name, failing)
            try:
                publish_folder(folder, NEW)
            except OSError:
                assert content(folder) == OLD
                assert names(tmp_path) == ["step-000007"]
        if next(count) <= calls:  # there was no such call any more
            break
        publish_folder(folder, OLD)
        calls += 1
    assert content(folder) == NEW and calls >= 2


def test_the_disk_has_the_data_before_the_manifest_and_that_before_the_name(tmp_path, monkeypatch):
    """Or after a loss of power the right name could stand over empty files."""
    events, fsync, rename = [], os.fsync, os.rename

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        size = path.stat().st_size if path.is_file() else None
        events.append(("sync", path.name, size))
        fsync(descriptor)

    def renamed(old: Any, new: Any) -> None:
        events.append(("rename", Path(old).name, Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    publish_folder(tmp_path / "step-000007", NEW)
    temporary = f"{UNFINISHED}step-000007"
    size = (tmp_path / "step-000007" / MANIFEST).stat().st_size
    assert events == [
        *(("sync", name, len(content)) for name, content in NEW.items()),
        ("sync", MANIFEST, size),
        ("sync", temporary, None),
        ("rename", temporary, "step-000007"),
        ("sync", tmp_path.name, None),
    ]


def test_what_was_half_replaced_is_put_back_before_a_new_attempt_can_fail(tmp_path, monkeypatch):
    """A process was killed between the two renames, and now the disk is full."""
    folder = tmp_path / "step-000007"
    publish_folder(folder, OLD)
    folder.rename(tmp_path / f"{UNFINISHED}replaced-step-000007")
    monkeypatch.setattr(
        durable, "write_file", lambda *a: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError):
        publish_folder(folder, NEW)
    assert content(folder) == OLD and names(tmp_path) == ["step-000007"]


def test_a_start_removes_what_is_unfinished_and_puts_back_what_may_be_the_only_whole_one(tmp_path):
    """Seen to fail when everything was removed that bears such a name."""
    publish_folder(tmp_path / "step-000005", NEW)
    publish_folder(tmp_path / f"{UNFINISHED}replaced-step-000005", OLD)
    publish_folder(tmp_path / "step-000007", OLD)
    (tmp_path / "step-000007").rename(tmp_path / f"{UNFINISHED}replaced-step-000007")
    (tmp_path / f"{UNFINISHED}step-000007").mkdir()
    (tmp_path / f"{UNFINISHED}config.json").touch()
    durable.remove_leftovers(tmp_path, re.compile(r"step-\d+"))
    assert names(tmp_path) == [f"{UNFINISHED}config.json", "step-000005", "step-000007"]
    assert (content(tmp_path / "step-000005"), content(tmp_path / "step-000007")) == (NEW, OLD)


def write(path: Path, change: Any) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGES = {
    "weights is not what was written": [
        lambda f: write(f / "weights", lambda c: c[:-1]),
        lambda f: write(f / "weights", lambda c: c + b"\0"),
        lambda f: write(f / "weights", lambda c: bytes(len(c))),
        lambda f: write(f / "weights", lambda c: b""),
        *(
            lambda f, bit=bit: write(
                f / "weights",
                lambda c: c[: bit // 8] + bytes([c[bit // 8] ^ 1 << bit % 8]) + c[bit // 8 + 1 :],
            )
            for bit in range(0, 300 * 8, 41)
        ),
    ],
    "weights is missing": [lambda f: (f / "weights").unlink()],
    "../weights is not what was written": [
        lambda f: write(f / MANIFEST, lambda c: c.replace(b'"weights"', b'"../weights"')),
    ],
    "manifest.json cannot be read": [
        lambda f: (f / MANIFEST).unlink(),
        *(
            lambda f, text=text: (f / MANIFEST).write_text(text)
            for text in ("", "{", "[]", "null", '{"files": 3}', '{"files": {"weights": 3}}')
        ),
    ],
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_reason(tmp_path, reason):
    for number, damage in enumerate(DAMAGES[reason]):
        folder = tmp_path / str(number)
        publish_folder(folder, OLD)
        damage(folder)
        with pytest.raises(ValueError) as caught:
            verify_folder(folder)
        assert str(caught.value) == f"{folder} is damaged: {reason}"


def test_what_else_is_in_a_folder_does_not_matter(tmp_path):
    folder = tmp_path / "a"
    publish_folder(folder, OLD)
    (folder / ".DS_Store").touch()
    (folder / "more").mkdir()
    verify_folder(folder)


def test_a_folder_that_is_not_there_or_empty_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(ValueError, match=f"{name} is damaged: manifest.json cannot be read"):
            verify_folder(tmp_path / name)


def test_the_manifest_has_name_size_and_hash_of_every_file(tmp_path):
    import hashlib

    publish_folder(tmp_path / "a", NEW)
    listing = json.loads((tmp_path / "a" / MANIFEST).read_text())["files"]
    assert listing == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in NEW.items()
    }
