"""Copies of checkpoints in another place: made in the background, whole or not at all.

About 10 seconds. Seen to fail when: training waited for a copy; an older checkpoint was copied
although a newer one was waiting; pauses did not grow; the thread ended with an error; all copies
but one were removed; obsolete copies were removed before the new one was there; copies were taken
without looking at their manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from test_durable import killed_at

from lora import backup as module
from lora.backup import Backup, FolderPlace
from lora.durable import MANIFEST, UNFINISHED, publish_folder, verify_files


def files(step: int) -> dict[str, bytes]:
    """What a checkpoint may hold."""
    return {"weights": bytes([step]) * 1000, "config.json": b"{}"}


class Memory:
    """A place that fails, or waits, when it is told to; and notes what it was asked."""

    def __init__(self, errors: Collection[Exception] = ()) -> None:
        self.errors = list(errors)
        self.is_free = threading.Event()
        self.is_free.set()
        self.has_begun = threading.Event()
        self.content: dict[int, Mapping[str, bytes]] = {}
        self.asked: list[int] = []

    def open(self) -> None: ...

    def steps(self) -> list[int]:
        return sorted(self.content)

    def read(self, step: int) -> dict[str, bytes]:
        return dict(self.content[step])

    def read_file(self, step: int, name: str) -> bytes:
        return self.content[step][name]

    def replace(self, step: int, files: Mapping[str, bytes], obsolete: Collection[int]) -> None:
        self.asked.append(step)
        self.has_begun.set()
        self.is_free.wait(20)
        if self.errors:
            raise self.errors.pop(0)
        self.content[step] = files
        for old in obsolete:
            del self.content[old]


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
        assert backup.finish(calm) == "" and backup.status == f"backup of step {step}"
    assert place.steps() == [2, 3]
    found, reasons = backup.newest(above=-1)
    assert found == (3, dict(place.content[3])) and reasons == []
    verify_files("here", found[1])
    assert {n: c for n, c in found[1].items() if n != MANIFEST} == files(3)


def test_copies_of_a_future_that_a_run_went_back_from_are_removed():
    place = Memory()
    place.content = {step: files(step) for step in (1, 2, 5, 6)}
    backup = Backup(place)
    backup.copy(3, files(3))
    assert backup.finish(calm) == "" and place.steps() == [2, 3]


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
        pass
    assert backup.finish(calm) == "" and place.steps() == [1]
    assert place.asked == [1] * 5 and pauses[:3] == [1.0, 2.0, 4.0]
    assert backup.failures == 0 and backup.status == "backup of step 1"


def test_pauses_do_not_grow_forever(pauses):
    place = Memory([OSError(5, "Input/output error")] * 20)
    backup = Backup(place)
    backup.copy(1, files(1))
    while len(pauses) < 15:
        pass
    assert max(pauses) == module.LONGEST_PAUSE


def test_the_trouble_is_told_until_a_copy_succeeds():
    place = Memory([OSError(28, "No space left on device")])
    backup = Backup(place)
    backup.copy(1, files(1))
    while not backup.failures:
        pass
    assert backup.status == "backup failed 1 times (No space left on device)"
    assert backup.finish(calm) == "" and backup.status == "backup of step 1"


def test_the_end_does_not_wait_forever_for_a_place_that_fails(pauses):
    place = Memory([OSError(28, "No space left on device")] * 1000)
    backup = Backup(place)
    backup.copy(1, files(1))
    assert backup.finish(calm) == "No space left on device"
    assert len(place.asked) >= module.LAST_TRIES


def test_a_machine_that_is_about_to_go_is_given_one_try_and_little_time(monkeypatch):
    place = Memory([OSError(5, "Input/output error")] * 1000)
    backup = Backup(place)
    backup.copy(1, files(1))
    assert backup.finish(urgent) == "Input/output error"
    slow = Memory()
    slow.is_free.clear()
    backup = Backup(slow)
    monkeypatch.setattr(module, "URGENT_SECONDS", 0.2)
    backup.copy(1, files(1))
    assert backup.finish(urgent) == "it takes too long"
    slow.is_free.set()


def test_without_a_place_nothing_happens():
    backup = Backup(None)
    backup.copy(1, files(1))
    assert backup.finish(calm) == backup.status == "" and backup.newest(-1) == (None, [])
    assert backup.thread is None


@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_at_any_line_of_copying_to_a_folder_leaves_a_whole_copy(tmp_path, torn):
    """The one before, until the new one is whole; and the next attempt leaves no trace of it."""
    line, was_killed = 0, True
    while was_killed:
        place = FolderPlace(tmp_path / str(line))
        for step in (1, 2):
            publish_folder(place.folder / f"step-{step:06d}", files(step))
        backup = Backup(place)
        was_killed = killed_at(line, torn, lambda b=backup: b.put(3, files(3)))
        found, _ = backup.newest(above=-1)
        assert found[0] in (2, 3)
        assert {n: c for n, c in found[1].items() if n != MANIFEST} == files(found[0])
        backup.put(3, files(3))
        assert place.steps() == [2, 3]
        assert not [p for p in place.folder.iterdir() if p.name.startswith(UNFINISHED)]
        line += 7  # the lines between are those of publishing, which have a test of their own
    assert line > 70


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights").write_bytes(b""),
        lambda folder: (folder / "weights").unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / "config.json").write_bytes(b"[]"),
        lambda folder: (folder / "extra").touch(),
    ],
)
def test_a_damaged_copy_is_told_and_the_one_before_it_taken(tmp_path, damage):
    backup = Backup(FolderPlace(tmp_path / "backup"))
    for step in (1, 2):
        backup.put(step, files(step))
    damage(tmp_path / "backup/step-000002")
    found, reasons = backup.newest(above=-1)
    assert found[0] == 1
    assert len(reasons) == 1 and reasons[0].startswith(f"{tmp_path}/backup/step-000002 is damaged")


def test_a_copy_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    """The drive may be back in a minute; the copy before it is older."""
    backup = Backup(FolderPlace(tmp_path / "backup"))
    for step in (1, 2):
        backup.put(step, files(step))

    def unreadable(path: Path) -> bytes:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(ValueError, match="step-000002 cannot be read .* run the same command"):
        backup.newest(above=-1)


def test_a_drive_that_is_not_mounted_is_not_taken_for_an_empty_one(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*/drive/MyDrive; mount the drive"):
        FolderPlace(tmp_path / "drive/MyDrive/backup").open()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/backup"):
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
