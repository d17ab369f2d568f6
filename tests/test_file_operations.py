"""Every file operation is once the last one, and once fails: saving, rotating, restoring, copying.

Python itself announces each open, rename, mkdir, unlink and rmdir, whichever module asks for it
(`sys.addaudithook`), so that none is overlooked; with `os.fsync`, at which a file may be torn, they
are the moments at which what is on disk changes. Every case is a forked process, since a hook
stays. A killed build of tokens leaves a folder under a name that nobody looks for, which goes a day
later (tests/test_token_cache_kills.py). About 60 seconds.

Seen to fail when a folder of copies kept what a killed removal of the oldest had left.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import litter, status

from data import token_cache
from lora import run_folder
from lora.durable import MANIFEST, manifest, verify_folder, write_file
from lora.folder_backup import FolderPlace
from lora.run_folder import OWN_FILES, RunFolder
from publish.new_output import new_file, new_folder

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
REFUSED, SUCCEEDED = 2, 0


def state(step: int) -> dict[str, bytes]:
    """The files of a checkpoint; enough of them that each kind of operation is made twice."""
    return {"weights": b"%06d" % step * 50, "state.json": b"%d" % step}


def with_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    return files | {MANIFEST: manifest(files)}


def hooked(root: Path, number: int, strike: Callable[[int | None], None]) -> None:
    """Calls `strike` at the given operation below `root`; with the descriptor if it is a sync."""
    count = 0

    def happens(descriptor: int | None = None) -> None:
        nonlocal count
        count += 1
        if count == number + 1:
            strike(descriptor)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and not isinstance(arguments[0], int):
            path, within = os.fsdecode(arguments[0]), arguments[-1]
            relative = event in ("os.remove", "os.rmdir") and within != -1
            if relative or path.startswith(str(root)):
                happens()

    fsync = os.fsync

    def synced(descriptor: int) -> None:
        happens(descriptor)
        fsync(descriptor)

    os.fsync = synced
    sys.addaudithook(heard)


def kill(descriptor: int | None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tear(descriptor: int | None) -> None:
    """As if the system had written half of it when the power went."""
    if descriptor is not None:
        path = Path(f"/proc/self/fd/{descriptor}")
        if path.is_file():
            os.truncate(path.resolve(), path.stat().st_size // 2)
    kill(descriptor)


def fail(error: BaseException) -> Callable[[int | None], None]:
    def failing(descriptor: int | None) -> None:
        raise error

    return failing


def struck(root: Path, number: int, strike: Callable, action: Callable[[Path], None]) -> int | None:
    """How `action` ended when operation `number` was struck; None if there was no such one."""
    process = os.fork()
    if process == 0:
        ended = 99
        try:
            torch.set_num_threads(1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            reached = []
            hooked(root, number, lambda d: (reached.append(1), strike(d)))
            try:
                action(root)
                ended = SUCCEEDED if reached else 50
            except (OSError, ValueError, MemoryError):
                ended = REFUSED
        finally:
            os._exit(ended)
    ended = status(process)
    return None if ended == 50 else ended


# --- what is done, and what has to hold after it was cut short and done again ---------------------


def opened(root: Path) -> RunFolder:
    run = RunFolder(root / "run", writes=True)
    run.open({"lr": 1}, {"sources": []}, done=1)
    return run


def begin_run(root: Path) -> None:
    run = opened(root)
    for step in (1, 2):
        run.publish_checkpoint(step, state(step), keep=2)
    close(run)


def close(run: RunFolder) -> None:
    """As the end of the process would."""
    assert run.lock
    assert run.metrics
    run.lock.close()
    run.metrics.close()


def save(root: Path) -> None:
    run = opened(root)
    told = run.publish_checkpoint(3, state(3), keep=2)
    assert bool(told) == (1 in run.saved_steps()), "an old one that stays is told, and only then"
    run.publish_adapter(state(3))
    close(run)


def check_saved(root: Path, again: bool) -> None:
    run = RunFolder(root / "run", writes=False)
    newest, damaged = run.newest_checkpoint()
    assert newest in ([run.checkpoint(3)] if again else [run.checkpoint(2), run.checkpoint(3)])
    assert damaged == []
    if again:
        assert run.saved_steps() in ([2, 3], [1, 2, 3])  # the oldest stays if its removal fails
        verify_folder(run.adapter)


def restore(root: Path) -> None:
    run = RunFolder(root / "run", writes=True)
    run.restore(3, with_manifest(state(3)) | dict.fromkeys(OWN_FILES, b"{}\n"))
    run.open({"lr": 1}, {"sources": []}, done=3)
    close(run)


def check_restored(root: Path, again: bool) -> None:
    newest, damaged = RunFolder(root / "run", writes=False).newest_checkpoint()
    assert newest and newest.name in (["step-000003"] if again else ["step-000002", "step-000003"])
    assert damaged == []


def begin_copies(root: Path) -> None:
    FolderPlace(root / "copies").replace("step-000001", with_manifest(state(1)), [])


def copy(root: Path) -> None:
    place = FolderPlace(root / "copies")
    place.replace("step-000002", with_manifest(state(2)), ["step-000001"])


def check_copied(root: Path, again: bool) -> None:
    whole = [f for f in (root / "copies").glob("step-*") if not verify_folder(f)]
    names = {folder.name for folder in whole}
    assert names and (not again or "step-000002" in names)  # the old one, if its removal fails


def write_new(root: Path) -> None:
    for path, make in (
        (root / "deep" / "model", new_folder),
        (root / "deep" / "er" / "model.gguf", new_file),
    ):
        if not path.exists():
            with make(path) as temporary:
                write_file(temporary / "part" if make is new_folder else temporary, b"abc" * 99)


def check_new(root: Path, again: bool) -> None:
    for path in (root / "deep" / "model" / "part", root / "deep" / "er" / "model.gguf"):
        assert path.read_bytes() == b"abc" * 99 if path.exists() else not again


def make_tokens(folder: Path) -> None:
    for name in token_cache.FILES:
        (folder / name).write_bytes(name.encode() * 20)


def read_tokens(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in token_cache.FILES}


def cache(root: Path) -> None:
    found = token_cache.load_or_make(root / "cache" / "key", make_tokens, read_tokens)
    assert found == {name: name.encode() * 20 for name in token_cache.FILES}


def check_cached(root: Path, again: bool) -> None:
    folder = root / "cache" / "key"
    assert token_cache.damage_of(folder) is None if folder.exists() else not again


def nothing(root: Path) -> None:
    pass


Case = tuple[Callable[[Path], None], Callable[[Path], None], Callable[[Path, bool], None]]
CASES: dict[str, Case] = {
    "save and rotate": (begin_run, save, check_saved),
    "restore": (begin_run, restore, check_restored),
    "copy": (begin_copies, copy, check_copied),
    "export": (nothing, write_new, check_new),
    "token cache": (nothing, cache, check_cached),
}
STRIKES: dict[str, Callable[[int | None], None]] = {
    "killed": kill,
    "torn": tear,
    "disk full": fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "I/O error": fail(OSError(errno.EIO, os.strerror(errno.EIO))),
    "no access": fail(PermissionError(errno.EACCES, os.strerror(errno.EACCES))),
    "no memory": fail(MemoryError()),
}


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_whatever_operation_is_the_last_nothing_is_lost_and_the_next_start_succeeds(
    tmp_path, case, strike
):
    begin, act, check = case
    number, ended, endings = -1, 0, set()
    while ended is not None:
        number += 1
        root = tmp_path / f"{number:04d}"
        root.mkdir()
        begin(root)
        ended = struck(root, number, strike, act)
        endings.add(ended)
        check(root, ended in (SUCCEEDED, None))
        assert ended != REFUSED or act is not write_new or litter(root) == [], number
        act(root)
        check(root, True)
        old = {save: root / "run/checkpoints/step-000001", copy: root / "copies/step-000001"}
        assert act not in old or not old[act].exists(), number
        assert litter(root) == [], number
    assert number > 9
    killed = strike in (kill, tear)
    assert endings <= ({-signal.SIGKILL, None} if killed else {REFUSED, SUCCEEDED, None})
    assert (-signal.SIGKILL if killed else REFUSED) in endings


# --- folders that are not disks -------------------------------------------------------------------


def spoil(folder: Path) -> None:
    """As a drive that renames a folder before it has all its bytes."""
    os.truncate(folder / "weights", 3)


def test_a_checkpoint_that_a_drive_has_not_got_yet_pushes_no_older_one_out(tmp_path, monkeypatch):
    begin_run(tmp_path)
    run, publish = opened(tmp_path), run_folder.publish_folder
    monkeypatch.setattr(run_folder, "publish_folder", lambda f, c: (publish(f, c), spoil(f))[0])
    with pytest.raises(OSError, match="weights is not what was written.*older checkpoints are"):
        run.publish_checkpoint(3, state(3), keep=1)
    for step in (1, 2):
        verify_folder(run.checkpoint(step))
    newest, damaged = run.newest_checkpoint()
    assert newest == run.checkpoint(2) and len(damaged) == 1
    close(run)


def test_a_copy_that_a_drive_has_not_got_yet_pushes_no_older_one_out(tmp_path, monkeypatch):
    begin_copies(tmp_path)
    from lora import folder_backup

    publish = folder_backup.publish_folder
    monkeypatch.setattr(folder_backup, "publish_folder", lambda f, c: (publish(f, c), spoil(f))[0])
    with pytest.raises(OSError, match="weights is not what was written"):
        copy(tmp_path)
    verify_folder(tmp_path / "copies" / "step-000001")
