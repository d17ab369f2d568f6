"""Copies of checkpoints in another place: made in the background, whole or not at all.

About 10 seconds. Seen to fail when: training waited for a copy; an older checkpoint was copied
although a newer one was waiting; pauses did not grow; the thread ended with an error; all copies
but one were removed; copies were taken without looking at their manifest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from test_durable import killed_at

from lora import backup as module
from lora.backup import Backup
from lora.durable import MANIFEST, UNFINISHED, manifest, publish_folder
from lora.folder_backup import FolderPlace


def files(step: int) -> dict[str, bytes]:
    """What a checkpoint may hold."""
    return {"weights": bytes([step]) * 1000, "config.json": b"{}"}


class Memory:
    """A place that fails, or waits, when it is told to; and notes what it was asked."""

    def __init__(self, errors: Collection[Exception] = (), seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.is_free = threading.Event()
        self.is_free.set()
        self.has_begun = threading.Event()
        self.content: dict[str, Mapping[str, bytes]] = {}
        self.asked: list[int] = []

    def open(self) -> None: ...

    def folders(self) -> dict[str, set[str]]:
        return {name: set(files) for name, files in self.content.items()}

    def read(self, folder: str) -> dict[str, bytes]:
        return dict(self.content[folder])

    def read_file(self, folder: str, name: str) -> bytes:
        return self.content[folder][name]

    def replace(self, folder: str, files: Mapping[str, bytes], obsolete: Collection[str]) -> None:
        self.asked.append(int(folder.removeprefix("step-")))
        self.has_begun.set()
        self.is_free.wait(20)
        time.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        self.content[folder] = files
        for old in obsolete:
            del self.content[old]

    def steps(self) -> list[int]:
        return Backup(self).steps()


def calm() -> bool:
    return False


def urgent() -> bool:
    return True


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is kept."""
    kept: list[float] = []
    wait_for = threading.Condition.wait_for

    def short(self, predicate, timeout=None):
        if timeout is None:
            return wait_for(self, predicate)
        kept.append(timeout)
        return wait_for(self, predicate, 0.001)

    monkeypatch.setattr(threading.Condition, "wait_for", short)
    return kept


def test_a_copy_has_the_files_and_their_manifest_and_the_newest_two_stay():
    place = Memory()
    backup = Backup(place)
    for step in (1, 2, 3):
        backup.copy(step, files(step))
        assert backup.finish(calm) == backup.status == "" and backup.take_news() == []
    assert place.steps() == [2, 3]
    assert backup.newest() == (3, files(3)) and backup.take_news() == []
    assert place.content["step-000003"][MANIFEST] == manifest(files(3))


def made(step: int) -> dict[str, bytes]:
    """A whole copy."""
    return files(step) | {MANIFEST: manifest(files(step))}


def test_damaged_copies_do_not_count_among_the_two_that_stay():
    """Seen to fail when the damaged one was kept, and the whole one before it removed."""
    place = Memory()
    place.content = {f"step-{step:06d}": made(step) for step in (1, 2)}
    place.content["step-000005"] = made(5) | {"weights": b"other"}
    backup = Backup(place)
    assert backup.newest() == (2, files(2))
    assert "weights is not what was written: it is not taken" in backup.take_news()[0]
    backup.copy(3, files(3))
    assert backup.finish(calm) == "" and place.steps() == [2, 3]


def test_newer_copies_of_another_machine_and_folders_of_other_programs_stay():
    """Seen to fail when all newer ones were removed, and all folders with such a name."""
    place = Memory()
    place.content = {f"step-{step:06d}": made(step) for step in (1, 2, 9)}
    others = {"step-000001x": {"a": b""}, "step-000000": {"model.bin": b""}}
    place.content |= others
    backup = Backup(place)
    backup.copy(3, files(3))
    assert backup.finish(calm) == "" and place.steps() == [2, 3, 9]
    assert others.items() <= place.content.items()


def of_run(step: int, seed: int) -> dict[str, bytes]:
    """What a checkpoint of a run with this seed may hold."""
    return files(step) | {"config.json": b'{"seed": %d, "data_sha256": "a"}' % seed}


def test_of_two_runs_that_begin_at_once_one_is_copied_and_the_other_told(pauses, monkeypatch):
    """Seen to fail when nobody looked whose copies they were: the slower run's were all removed."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    place = Memory()
    one, other = Backup(place), Backup(place)
    one.copy(2, of_run(2, seed=1))
    assert one.finish(calm) == ""
    other.copy(4, of_run(4, seed=2))
    assert other.finish(calm) == "another run is copied there: seed (1 and 2)"
    assert other.status.startswith("BACKUP FAILS (another run is copied there")
    one.copy(6, of_run(6, seed=1))
    assert one.finish(calm) == "" and place.steps() == [2, 6]


def test_a_copy_that_was_damaged_since_is_in_nobodys_way(pauses, monkeypatch):
    """Seen to fail when a copy without its settings, or with odd ones, was another run's."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    place = Memory()
    backup = Backup(place)
    broken = ({MANIFEST: b""}, {"config.json": b"{"}, {"config.json": b""})
    for step, damaged in zip((2, 4, 6), broken, strict=True):
        place.content = {"step-000001": damaged}
        backup.copy(step, of_run(step, seed=1))
        assert backup.finish(calm) == "" and place.steps() == [1, step]


def test_nobody_waits_for_a_copy_and_only_the_newest_that_waits_is_made():
    place = Memory()
    place.is_free.clear()
    backup = Backup(place)
    backup.copy(1, files(1))
    assert place.has_begun.wait(20)
    for step in range(2, 50):
        backup.copy(step, files(step))
    assert place.asked == [1] and backup.status == ""
    place.is_free.set()
    assert backup.finish(calm) == "" and place.asked == [1, 49]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("no"), MemoryError(), KeyError(1)]
)
def test_a_copy_that_fails_is_tried_again_after_pauses_that_grow(pauses, error):
    place = Memory([error] * 4)
    backup = Backup(place)
    backup.copy(1, files(1))
    while place.errors:
        time.sleep(0.001)
    assert backup.finish(calm) == "" and place.steps() == [1]
    assert place.asked == [1] * 5 and pauses[:3] == [1.0, 2.0, 4.0]
    assert backup.status == "" and len(backup.take_news()) == 2


def test_pauses_do_not_grow_forever(pauses):
    place = Memory([OSError(5, "Input/output error")] * 20)
    backup = Backup(place)
    backup.copy(1, files(1))
    while len(pauses) < 15:
        time.sleep(0.001)
    assert max(pauses) == module.LONGEST_PAUSE


def test_a_newer_checkpoint_takes_the_place_of_one_that_fails(pauses):
    place = Memory([OSError(5, "Input/output error")] * 3, seconds=0.05)
    backup = Backup(place)
    backup.copy(1, files(1))
    backup.copy(2, files(2))
    assert backup.finish(calm) == "" and place.steps() == [2]


def test_the_trouble_is_told_until_a_copy_succeeds():
    place = Memory([OSError(28, "No space left on device")])
    backup = Backup(place)
    backup.copy(1, files(1))
    while not backup.trouble:
        time.sleep(0.001)
    assert backup.status == "BACKUP FAILS (No space left on device)"
    assert "step 1 could not be copied" in backup.take_news()[0]
    assert backup.finish(calm) == backup.status == ""
    assert "has step 1, after all" in backup.take_news()[0]


def test_the_end_has_patience_with_a_place_that_fails_but_not_forever(pauses, monkeypatch):
    place = Memory([OSError(28, "No space left on device")] * 1000, seconds=0.01)
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    backup = Backup(place)
    backup.copy(1, files(1))
    started = time.monotonic()
    assert backup.finish(calm) == "No space left on device"
    assert 0.5 < time.monotonic() - started < 5 and len(place.asked) > 5


def test_a_long_pause_is_over_when_all_else_is_done(monkeypatch):
    """Seen to fail when it was waited for to its end."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 200.0)
    place = Memory([OSError(28, "No space left on device")])
    backup = Backup(place)
    backup.copy(1, files(1))
    while not backup.trouble:
        time.sleep(0.001)
    started = time.monotonic()
    assert backup.finish(calm) == "" and time.monotonic() - started < 60


def test_a_machine_that_is_about_to_go_tries_as_long_as_there_is_time(monkeypatch):
    """Seen to fail when the first error, of an older copy even, ended it."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    place = Memory([OSError(5, "Input/output error")] * 3, seconds=0.05)
    backup = Backup(place)
    backup.copy(1, files(1))
    assert place.has_begun.wait(20)
    backup.copy(2, files(2))
    assert backup.finish(urgent) == "" and place.steps() == [2]
    slow = Memory()
    slow.is_free.clear()
    backup = Backup(slow)
    monkeypatch.setattr(module, "URGENT_SECONDS", 0.2)
    backup.copy(1, files(1))
    assert backup.finish(urgent) == "it takes too long"
    slow.is_free.set()


def test_an_error_in_training_leaves_the_last_copy_the_time_it_needs():
    place = Memory(seconds=0.2)
    with pytest.raises(RuntimeError), Backup(place) as backup:
        backup.copy(1, files(1))
        raise RuntimeError
    assert place.steps() == [1]


def test_without_a_thread_training_goes_on_and_the_next_checkpoint_tries_again(monkeypatch):
    """Seen to fail when the error ended the run, before it had written its result."""
    place = Memory()

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    backup = Backup(place)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    backup.copy(1, files(1))
    assert backup.status == "BACKUP FAILS (can't start new thread)"
    assert "step 1 could not be copied" in backup.take_news()[0]
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    assert backup.finish(calm) == "can't start new thread" and not place.content
    monkeypatch.undo()
    backup.copy(2, files(2))
    assert backup.finish(calm) == backup.status == "" and place.steps() == [2]


def test_without_a_place_nothing_happens():
    backup = Backup(None)
    backup.copy(1, files(1))
    assert backup.finish(calm) == backup.status == "" and backup.newest() is None
    assert backup.thread is None


@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_at_any_line_of_copying_to_a_folder_leaves_a_whole_copy(tmp_path, torn):
    """The one before, until the new one is whole; and the next attempt leaves no trace of it."""
    line, was_killed = 0, True
    while was_killed:
        place = FolderPlace(tmp_path / str(line))
        for step in (1, 2):
            publish_folder(place.path / f"step-{step:06d}", files(step))
        backup = Backup(place)
        was_killed = killed_at(line, torn, lambda b=backup: b.put(3, files(3)))
        step, found = backup.newest()
        assert step in (2, 3) and found == files(step)
        backup.put(3, files(3))
        assert backup.steps() == [2, 3]
        assert not [p for p in place.path.iterdir() if p.name.startswith(UNFINISHED)]
        line += 7  # the lines between are those of publishing, which have a test of their own
    assert line > 70


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights").write_bytes(b""),
        lambda folder: (folder / "weights").unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / "config.json").write_bytes(b"[]"),
    ],
)
def test_a_damaged_copy_is_told_and_the_one_before_it_taken(tmp_path, damage):
    backup = Backup(FolderPlace(tmp_path / "backup"))
    for step in (1, 2):
        backup.put(step, files(step))
    damage(tmp_path / "backup/step-000002")
    assert backup.newest() == (1, files(1))
    (news,) = backup.take_news()
    assert news.startswith(f"{tmp_path}/backup/step-000002 is damaged")


def test_what_file_managers_leave_in_a_copy_is_no_damage(tmp_path):
    """Seen to fail when a copy had to hold nothing but its files: the run began again."""
    backup = Backup(FolderPlace(tmp_path / "backup"))
    backup.put(1, files(1))
    (tmp_path / "backup/.DS_Store").touch()
    (tmp_path / "backup/step-000001/.DS_Store").touch()
    (tmp_path / "backup/step-000001/folder").mkdir()
    assert backup.newest() == (1, files(1)) and backup.take_news() == []


def test_a_copy_that_is_there_already_is_not_touched(tmp_path):
    """Seen to fail when it was replaced by itself, and for a moment was not there."""
    backup = Backup(FolderPlace(tmp_path))
    backup.put(1, files(1))
    before = (tmp_path / "step-000001").stat().st_ino
    backup.put(1, files(1))
    assert (tmp_path / "step-000001").stat().st_ino == before
    (tmp_path / "step-000001" / "weights").write_bytes(b"")
    backup.put(1, files(1))
    assert backup.newest() == (1, files(1))


def test_a_copy_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    """The drive may be back in a minute; the copy before it is older."""
    backup = Backup(FolderPlace(tmp_path / "backup"))
    for step in (1, 2):
        backup.put(step, files(step))

    def unreadable(path: Path) -> bytes:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(ValueError, match="step-000002 cannot be read .* run the same command"):
        backup.newest()


def test_a_drive_that_is_not_mounted_is_not_taken_for_an_empty_one(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*/drive/MyDrive; mount the drive"):
        FolderPlace(tmp_path / "drive/MyDrive/backup").open()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/backup", Path("/proc/backup")):
        with pytest.raises(ValueError, match="cannot be written|there is no folder"):
            FolderPlace(folder).open()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_lies_beside_the_copies_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "notes.txt").touch()
    place = FolderPlace(tmp_path)
    for step in (1, 2, 3):
        Backup(place).put(step, files(step))
    names = sorted(path.name for path in Path(tmp_path).iterdir())
    assert names == ["mine", "notes.txt", "step-000002", "step-000003"]
