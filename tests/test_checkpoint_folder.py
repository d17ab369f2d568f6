"""What counts as a checkpoint, and as one that is gone: names, passing errors, links, drives.

Seen to fail when an error of the disk was taken for damage, and the whole checkpoint then removed;
when a folder's name was believed; when folders above a backup were made; when what stood under a
temporary name was a link or a file, and stayed; and when another program's temporary folder went.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from small_runs import flags, litter

import train
from lora import folder_backup, locks, run_folder
from lora.backup import Backup
from lora.checkpoint_folder import steps_in
from lora.durable import MANIFEST, manifest, publish_folder, verify_folder, write_file
from lora.folder_backup import FolderPlace
from lora.run_folder import RunFolder


def state(step: int) -> dict[str, bytes]:
    return {"weights": b"%06d" % step, "state.json": json.dumps({"step": step}).encode()}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run", writes=True)
    for step in (1, 2):
        run.publish_checkpoint(step, state(step), keep=3)
    return run


@pytest.mark.parametrize("name", [MANIFEST, "weights", "state.json"])
def test_an_error_that_may_pass_is_no_damage(run, monkeypatch, name):
    read = Path.read_bytes

    def broken(path: Path) -> bytes:
        if path == run.checkpoint(2) / name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", broken)
        with pytest.raises(ValueError, match=r"step-000002 cannot be read \(Input/output error\)"):
            run.newest_checkpoint()
    assert run.newest_checkpoint() == (run.checkpoint(2), [])


def test_a_checkpoint_under_anothers_name_does_not_count(run):
    shutil.copytree(run.checkpoint(1), run.checkpoint(99))
    newest, (reason,) = run.newest_checkpoint()
    assert newest == run.checkpoint(2)
    assert reason == f"{run.checkpoint(99)} is damaged: what is in it is step 1"
    run.publish_checkpoint(99, state(99), keep=3)
    assert run.newest_checkpoint() == (run.checkpoint(99), [])


def test_a_run_goes_on_and_says_so_when_an_old_checkpoint_cannot_be_removed(
    small, monkeypatch, capsys
):
    def refusing(folder: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(folder))

    monkeypatch.setattr(run_folder, "remove_folder", refusing)
    given = {"max_steps": 3, "epochs": None, "save_every": 1, "keep": 1, "eval_every": 0}
    assert train.main(flags(**given, sample_every=0)) == 0
    said = capsys.readouterr().out
    assert said.count("step-000001 is of no more use, and stays (Operation not permitted)") == 2
    assert steps_in(small / "run" / "checkpoints") == [1, 2, 3]


def test_a_checkpoint_without_its_state_is_damaged_though_its_manifest_holds(run):
    publish_folder(run.checkpoint(3), {"weights": b"3"})
    newest, (reason,) = run.newest_checkpoint()
    assert newest == run.checkpoint(2)
    assert reason == f"{run.checkpoint(3)} is damaged: state.json is missing"


def test_an_old_checkpoint_that_cannot_be_removed_is_told_and_stays(run, monkeypatch):
    remove = run_folder.remove_folder

    def refusing(folder: Path) -> None:
        if folder == run.checkpoint(1):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(folder))
        remove(folder)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "remove_folder", refusing)
        told = run.publish_checkpoint(3, state(3), keep=1)
    stays = f"{run.checkpoint(1)} is of no more use, and stays (Operation not permitted)"
    assert told == [stays]
    assert run.saved_steps() == [1, 3]
    assert run.publish_checkpoint(4, state(4), keep=1) == []
    assert run.saved_steps() == [4]


@pytest.mark.parametrize("name", ["weights", MANIFEST])
@pytest.mark.parametrize("what", ["a pipe", "a terabyte"])
def test_what_cannot_be_read_to_its_end_is_damaged(run, name, what):
    path = run.checkpoint(2) / name
    if what == "a pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        os.truncate(path, 10**12)
    newest, (reason,) = run.newest_checkpoint()
    assert newest == run.checkpoint(1) and reason.startswith(f"{run.checkpoint(2)} is damaged: ")


def test_an_error_while_writing_names_the_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as told:
        write_file(tmp_path / "config.json", b"{}")
    assert told.value.filename == str(tmp_path / "config.json")


def test_a_start_leaves_an_export_into_the_runs_folder_alone(run):
    for name in (".unfinished-merged", ".unfinished-adapter"):
        (run.path / name).mkdir()
    run.open({}, {}, done=0)
    assert litter(run.path) == [".unfinished-merged"]
    assert run.lock and run.metrics
    run.lock.close()
    run.metrics.close()


def test_a_copy_that_was_being_replaced_is_put_back_before_anybody_looks(tmp_path):
    place = FolderPlace(tmp_path)
    place.replace("step-000001", state(1) | {MANIFEST: manifest(state(1))}, [])
    (tmp_path / "step-000001").rename(tmp_path / ".unfinished-replaced-step-000001")
    place.open()
    found = Backup(place).newest()
    assert found and found[0] == 1 and litter(tmp_path) == []


def test_an_old_copy_that_cannot_be_removed_is_no_failed_copy(tmp_path, monkeypatch):
    place, files = FolderPlace(tmp_path), state(1) | {MANIFEST: manifest(state(1))}
    place.replace("step-000001", files, [])

    def refusing(folder: Path) -> None:
        if folder.name == "step-000001":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(folder))

    monkeypatch.setattr(folder_backup, "remove_folder", refusing)
    files = state(2) | {MANIFEST: manifest(state(2))}
    place.replace("step-000002", files, ["step-000001"])
    assert steps_in(tmp_path) == [1, 2]


def test_a_result_that_is_there_keeps_what_was_added_to_it(run):
    files = {"adapter_model.safetensors": b"weights", "README.md": b"as it was made"}
    run.publish_adapter(files)
    (run.adapter / "README.md").write_text("My own words.")
    (run.adapter / "picture.png").write_bytes(b"picture")
    run.publish_adapter(files | {"README.md": b"made again"})
    assert (run.adapter / "README.md").read_text() == "My own words."
    assert (run.adapter / "picture.png").exists()
    (run.adapter / "README.md").unlink()
    run.publish_adapter(files)
    assert sorted(os.listdir(run.adapter)) == [
        "adapter_model.safetensors",
        "manifest.json",
        "picture.png",
    ]


@pytest.mark.parametrize("damage", ["other weights", "no manifest"])
def test_a_result_that_is_not_whole_is_made_again(run, damage):
    files = {"adapter_model.safetensors": b"weights", "README.md": b"as it was made"}
    run.publish_adapter(files)
    if damage == "no manifest":
        (run.adapter / MANIFEST).unlink()
        (told,) = run.publish_adapter(files)
        assert told == f"{run.adapter} is damaged: manifest.json cannot be read: written again"
    else:
        assert run.publish_adapter(files | {"adapter_model.safetensors": b"others"}) == []
        assert run.publish_adapter(files) == []
    verify_folder(run.adapter)
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == b"weights"


def test_a_lock_that_is_a_link_is_refused_and_its_target_untouched(run, tmp_path):
    (tmp_path / "diary").write_text("mine")
    (run.path / "run.lock").symlink_to(tmp_path / "diary")
    with pytest.raises(ValueError, match=r"run.lock is no file of ours; remove it"):
        run.take_lock()
    assert (tmp_path / "diary").read_text() == "mine"


@pytest.mark.parametrize("error", [errno.ENOTSUP, errno.EBADF, errno.EIO, errno.ENOLCK])
def test_a_drive_that_knows_no_locks_hinders_nobody(run, monkeypatch, error):
    def refusing(*more: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(locks.fcntl, "flock", refusing)
    run.take_lock()
    assert run.lock
    run.lock.close()


def test_only_names_that_the_program_writes_count(run):
    shutil.copytree(run.checkpoint(1), run.checkpoints / "step-0000008")
    assert run.saved_steps() == [1, 2]
    run.publish_checkpoint(1234567, state(1234567), keep=2)
    assert run.saved_steps() == [2, 1234567]


def test_a_copy_under_anothers_name_is_not_taken(tmp_path):
    place = FolderPlace(tmp_path)
    for step in (1, 2):
        place.replace(f"step-{step:06d}", state(step) | {MANIFEST: manifest(state(step))}, [])
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000099")
    backup = Backup(place)
    found = backup.newest()
    assert found and found[0] == 2
    assert "what is in it is step 1: it is not taken" in " ".join(backup.take_news())


def test_a_drive_that_is_gone_is_an_error_and_not_made_anew(tmp_path):
    drive = tmp_path / "mounted"
    drive.mkdir()
    place = FolderPlace(drive / "copies")
    files = state(1) | {MANIFEST: manifest(state(1))}
    place.replace("step-000001", files, [])
    shutil.rmtree(drive)
    with pytest.raises(OSError):
        place.replace("step-000002", files, [])
    assert not drive.exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_stands_in_a_folders_place_is_replaced_without_litter(tmp_path, kind):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "adapter"
    if kind == "link":
        publish_folder(elsewhere, state(1))
    if kind == "file":
        folder.write_text("in the way")
    else:
        folder.symlink_to(elsewhere)
    for step in (2, 3):
        publish_folder(folder, state(step))
        verify_folder(folder)
        assert litter(tmp_path) == [] and not folder.is_symlink()
    assert kind != "link" or not verify_folder(elsewhere)


def test_what_another_program_has_not_finished_stays(tmp_path):
    theirs = [".unfinished-model", ".unfinished-replaced-model"]
    for name in (*theirs, ".unfinished-step-000001", ".unfinished-removed-step-000002"):
        (tmp_path / name).mkdir()
    files = state(3) | {MANIFEST: manifest(state(3))}
    FolderPlace(tmp_path).replace("step-000003", files, [])
    assert litter(tmp_path) == theirs
    assert steps_in(tmp_path) == [3]
