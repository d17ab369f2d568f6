"""A run outlives its machine: from copies elsewhere it goes on to the same bits.

About 30 seconds. Compared is what test_resume.py compares. Seen to fail when: metrics were not
copied; a damaged copy was taken; the copy's manifest went into the checkpoint; a copy was taken
although this machine was further; the settings of the copies' run were not compared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import ROOT, child, command_line, flags, litter, metrics, outcome, start
from test_resume import Abrupt, hook, when
from test_train_bad_input import refusal

import train
from data.batches import order_of_epoch
from lora.backup import Backup
from lora.checkpoint_folder import steps_in
from lora.durable import manifest, publish_folder
from lora.run_folder import CONFIG, RunFolder

STEPS = 20


@pytest.fixture(autouse=True)
def fresh_order() -> None:
    order_of_epoch.cache_clear()


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    """What comes of the run if nothing stops it."""
    return outcome(place / "uninterrupted")


@pytest.fixture
def drive(place: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Flags of a run that is backed up into a folder of the test's own, and where it is."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:80]
    return {"output": f"out-{name}", "backup": f"drive-{name}", "save_every": 4}


def interrupted(patch: pytest.MonkeyPatch, given: Mapping[str, Any], step: int) -> None:
    """Trains until the process dies before the given step; what was to be copied is copied."""

    def die() -> None:
        raise Abrupt

    with patch.context() as inner:
        backups: list[Backup] = []
        make = train.save

        def save(run: Any, done: int) -> None:
            make(run, done)
            backups.append(run.backup)
            assert run.backup.finish(lambda: False) == ""

        inner.setattr(train, "save", save)
        hook(inner, "train_step", when(step, die), None)
        with pytest.raises(Abrupt):
            train.main(flags(**given))


def lose_machine(given: Mapping[str, Any]) -> None:
    """Deletes all of the run but its backup."""
    shutil.rmtree(given["output"])


def test_a_run_goes_on_from_its_backup_alone_to_the_same_bits(place, expected, drive, monkeypatch):
    interrupted(monkeypatch, drive, step=10)
    assert steps_in(Path(drive["backup"])) == [4, 8]
    lose_machine(drive)
    assert train.main(flags(**drive, resume=True)) == 0
    assert outcome(Path(drive["output"])) == expected
    assert steps_in(Path(drive["backup"])) == [16, STEPS]
    assert litter(Path(drive["backup"])) == litter(Path(drive["output"])) == []


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "metrics.jsonl", "manifest.json"])
def test_of_damaged_copies_the_one_before_is_taken_and_the_user_told(
    place, expected, drive, monkeypatch, capsys, name
):
    interrupted(monkeypatch, drive, step=10)
    newest = Path(drive["backup"]) / "step-000008" / name
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    lose_machine(drive)
    assert train.main(flags(**drive, resume=True)) == 0
    said = capsys.readouterr().out
    assert f"{drive['backup']}/step-000008 is damaged: " in said and "it is not taken" in said
    assert f"fetched the checkpoint after step 4 from {drive['backup']}" in said
    assert outcome(Path(drive["output"])) == expected


def test_without_one_whole_copy_nothing_is_begun_over_it(place, drive, monkeypatch, capsys):
    """Seen to fail when the run began again, and removed what could perhaps have been mended."""
    interrupted(monkeypatch, drive, step=10)
    for copy in Path(drive["backup"]).iterdir():
        (copy / "state.json").write_bytes(b"")
    lose_machine(drive)
    told = refusal(capsys, **drive, resume=True)
    assert "step-000008 is damaged: state.json is not what was written: it is not taken" in told
    assert "remove what is there to begin again, or choose another place" in told


@pytest.mark.parametrize("damage", ["config.json", "state.json", "manifest.json"])
def test_a_damaged_copy_does_not_keep_a_whole_machine_from_going_on(
    place, expected, drive, monkeypatch, capsys, damage
):
    interrupted(monkeypatch, drive, step=10)
    for copy in Path(drive["backup"]).iterdir():
        (copy / damage).write_bytes(b"{}")
    assert train.main(flags(**drive, resume=True)) == 0
    assert "going on after step 8" in capsys.readouterr().out
    assert outcome(Path(drive["output"])) == expected


def test_folders_of_other_programs_are_left_alone(place, expected, drive, monkeypatch):
    other = Path(drive["backup"]) / "step-001000"
    other.mkdir(parents=True)
    (other / "model.bin").touch()
    assert train.main(flags(**drive, resume=True)) == 0
    assert (other / "model.bin").exists() and steps_in(other.parent) == [16, STEPS, 1000]
    assert outcome(Path(drive["output"])) == expected


def test_files_of_file_managers_cost_no_run(place, expected, drive, capsys):
    assert train.main(flags(**drive)) == 0
    for folder in [
        *Path(drive["backup"]).iterdir(),
        *Path(drive["output"], "checkpoints").iterdir(),
    ]:
        (folder / ".DS_Store").touch()
    for is_lost in (False, True):
        if is_lost:
            lose_machine(drive)
        assert train.main(flags(**drive, resume=True)) == 0
        assert "damaged" not in capsys.readouterr().out
        assert metrics(Path(drive["output"])) == expected["metrics"]


def test_a_damaged_checkpoint_here_is_replaced_by_its_copy(
    place, expected, drive, monkeypatch, capsys
):
    interrupted(monkeypatch, drive, step=10)
    folder = RunFolder(Path(drive["output"]), writes=False)
    (folder.checkpoint(8) / "optimizer.safetensors").write_bytes(b"")
    assert train.main(flags(**drive, resume=True)) == 0
    said = capsys.readouterr().out
    assert "step-000008 is damaged: optimizer.safetensors is not what was written" in said
    assert "fetched the checkpoint after step 8" in said
    assert outcome(Path(drive["output"])) == expected


def test_a_machine_that_is_further_than_its_backup_goes_on_from_its_own(
    place, expected, drive, monkeypatch, capsys
):
    interrupted(monkeypatch, drive, step=10)
    shutil.rmtree(Path(drive["backup"]) / "step-000008")
    assert train.main(flags(**drive, resume=True)) == 0
    said = capsys.readouterr().out
    assert "fetched" not in said and "going on after step 8" in said
    assert outcome(Path(drive["output"])) == expected


def test_a_finished_run_comes_back_whole_without_training(place, expected, drive, capsys):
    assert train.main(flags(**drive)) == 0
    lose_machine(drive)
    assert train.main(flags(**drive, resume=True)) == 0
    assert f"fetched the checkpoint after step {STEPS}" in capsys.readouterr().out
    assert outcome(Path(drive["output"])) == expected


def test_a_kill_while_fetching_leaves_what_the_next_start_can_fetch(
    place, expected, drive, monkeypatch
):
    """Before and after each file that is put into the run's folder."""
    interrupted(monkeypatch, drive, step=10)
    from lora import run_folder

    for call in range(4):
        lose_machine(drive)
        with monkeypatch.context() as patch:
            calls = iter(range(100))

            def hooked(function, calls=calls, call=call):
                def replaced(*arguments: Any) -> None:
                    if next(calls) == call:
                        raise Abrupt
                    function(*arguments)

                return replaced

            for name in ("replace_file", "publish_folder"):
                patch.setattr(run_folder, name, hooked(getattr(run_folder, name)))
            with pytest.raises(Abrupt):
                train.main(flags(**drive, resume=True))
    assert train.main(flags(**drive, resume=True)) == 0
    assert outcome(Path(drive["output"])) == expected


def test_training_does_not_wait_for_a_place_that_hangs(place, expected, drive, monkeypatch):
    """The last steps are done while the first copy is still being made; the end waits for it."""
    import threading

    from lora.folder_backup import FolderPlace

    is_last_step_done, order = threading.Event(), []
    replace = FolderPlace.replace

    def slow(self: FolderPlace, folder: str, *more: Any) -> None:
        if not order:
            assert is_last_step_done.wait(60)
        order.append(int(folder.removeprefix("step-")))
        replace(self, folder, *more)

    monkeypatch.setattr(FolderPlace, "replace", slow)
    hook(monkeypatch, "train_step", None, when(STEPS - 1, is_last_step_done.set))
    assert train.main(flags(**drive)) == 0
    assert order[0] == 4 and order[-1] == STEPS and len(order) <= 3
    assert outcome(Path(drive["output"])) == expected


def test_a_place_that_fails_for_good_is_told_and_the_result_is_there(
    place, expected, drive, monkeypatch, capsys
):
    from lora import backup
    from lora.folder_backup import FolderPlace

    monkeypatch.setattr(backup, "FIRST_PAUSE", 0.01)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "PATIENCE", 0.2)
    monkeypatch.setattr(FolderPlace, "replace", full)
    assert train.main(flags(**drive)) == train.NOT_BACKED_UP
    said = capsys.readouterr().out
    assert said.count("could not be copied to") == 1
    assert (
        f"step {STEPS} is only here, and not in {Path(drive['backup']).resolve()}: No space" in said
    )
    assert outcome(Path(drive["output"])) == expected


def without_samples(found: dict[str, Any]) -> dict[str, Any]:
    """An outcome without what the model said, which is longer in a process of its own."""
    return found | {"metrics": [r for r in found["metrics"] if "sample" not in r]}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_as_a_user_would_train_kill_delete_everything_and_type_the_same_line_again(
    place, expected, drive, number
):
    line = command_line(flags(**drive, resume=True))
    process = start(*line, folder=place)
    while not steps_in(place / drive["backup"]):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    lose_machine(drive)
    shutil.rmtree(place / "cache", ignore_errors=True)
    again = child(*line, folder=place)
    assert again.returncode == 0, again.stderr
    assert "fetched the checkpoint after step" in again.stdout
    assert without_samples(outcome(place / drive["output"])) == without_samples(expected)


def test_two_processes_go_on_from_a_backup(place, drive, monkeypatch):
    interrupted(monkeypatch, drive, step=10)
    lose_machine(drive)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.run(
        [*torchrun, "--nproc-per-node=2", str(ROOT / "train.py")]
        + command_line(flags(**drive, resume=True)),
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.count("fetched the checkpoint after step 8") == 1
    assert process.stdout.count("going on after step 8") == 1
    assert steps_in(place / drive["backup"])[-1] == STEPS


# --- what is refused ------------------------------------------------------------------------------


def test_copies_of_a_run_are_not_overwritten_by_a_new_one(place, drive, monkeypatch, capsys):
    interrupted(monkeypatch, drive, step=10)
    lose_machine(drive)
    told = refusal(capsys, **drive)
    assert told.startswith(f"--backup is {drive['backup']}, which has copies of a run already; add")


@pytest.mark.parametrize("is_local_there", [False, True])
def test_copies_of_another_run_are_refused(place, drive, monkeypatch, capsys, is_local_there):
    interrupted(monkeypatch, drive, step=10)
    if is_local_there:
        other = flags(**drive | {"output": f"{drive['output']}-2"}, seed=5)
        del other["backup"]
        assert train.main(other | {"max_steps": 0}) == 0
        told = refusal(capsys, **drive | {"output": f"{drive['output']}-2"}, resume=True)
        assert "has copies of another run than" in told and "seed (3407 and 5)" in told
    else:
        lose_machine(drive)
        told = refusal(capsys, **drive, resume=True, seed=5)
        assert "was trained with other settings: --seed (was 3407, now 5)" in told


def test_a_folder_of_adapters_is_no_backup(place, drive, monkeypatch, capsys):
    """Even if they are called like checkpoints."""
    interrupted(monkeypatch, drive, step=10)
    copy = Path(drive["backup"]) / "step-000008"
    files = {path.name: path.read_bytes() for path in copy.glob("adapter_*")}
    publish_folder(Path(f"{drive['backup']}-adapters") / copy.name, files)
    lose_machine(drive)
    told = refusal(capsys, **drive | {"backup": f"{drive['backup']}-adapters"}, resume=True)
    assert "has no config.json with step 8, so it is no backup" in told


def test_what_was_fetched_is_a_checkpoint_like_any_other(place, drive, monkeypatch):
    """It has copies of the run's own files, too."""
    interrupted(monkeypatch, drive, step=10)
    copy = Path(drive["backup"]) / "step-000008"
    wanted = {path.name: path.read_bytes() for path in copy.iterdir()}
    lose_machine(drive)
    train.prepare(drive | {"resume": True}).folder.lock.close()
    fetched = Path(drive["output"]) / "checkpoints" / copy.name
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == wanted


def test_a_runs_own_checkpoints_can_be_gone_on_from_elsewhere(place, drive, monkeypatch):
    """Each has all that it takes."""
    interrupted(monkeypatch, drive, step=10)
    shutil.move(f"{drive['output']}/checkpoints", f"{drive['backup']}-checkpoints")
    lose_machine(drive)
    assert train.main(drive | {"backup": f"{drive['backup']}-checkpoints", "resume": True}) == 0
    assert outcome(Path(drive["output"])) == outcome(place / "uninterrupted")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff"])
def test_a_copy_whose_settings_cannot_be_read_is_refused(place, drive, monkeypatch, capsys, text):
    interrupted(monkeypatch, drive, step=10)
    lose_machine(drive)
    copy = Path(drive["backup"]) / "step-000008"
    files = {path.name: path.read_bytes() for path in copy.iterdir()} | {CONFIG: text}
    del files["manifest.json"]
    (copy / CONFIG).write_bytes(text)
    (copy / "manifest.json").write_bytes(manifest(files))
    assert f"a copy's {CONFIG} cannot be read" in refusal(capsys, **drive, resume=True)


@pytest.mark.parametrize("backup", ["run", "run/backup", "run/checkpoints"])
def test_a_backup_within_the_run_is_refused(small, capsys, backup):
    assert "within the run's own folder run; choose another disk" in refusal(capsys, backup=backup)


def test_an_empty_name_is_refused(small, capsys):
    """As of an unset variable; it would be the current directory."""
    assert "--backup is empty; give a folder, or hub:USER/NAME" in refusal(capsys, backup="")


def test_a_drive_that_is_not_there_is_refused(small, capsys):
    told = refusal(capsys, backup="/no/such/drive/backup", resume=True)
    assert "there is no folder /no/such/drive; mount the drive" in told


def test_a_checkpoint_of_a_backup_is_an_adapter_that_can_be_used(place, drive, monkeypatch):
    from lora.choose_adapter import check_whole, find_adapter

    interrupted(monkeypatch, drive, step=10)
    copy = Path(drive["backup"]) / "step-000008"
    assert find_adapter(copy) == copy
    check_whole(copy)
    saved = json.loads((copy / CONFIG).read_bytes())
    assert saved["backup"] == str(Path(drive["backup"]).resolve())  # from wherever it goes on
