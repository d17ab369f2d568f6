"""One file of a run's surroundings is damaged: told every time, put back or gone back, never used.

Every file of the newest checkpoint, of the run's folder, of the token cache, of the base and of the
Hub's cache: cut, emptied, zeroed, one bit turned at 64 places, gone, and exchanged for another
step's. What can be put back is, and the run ends in the bits of one that was never interrupted; a
base cannot, and is refused. About 90 seconds.

Seen to fail when: config.json had no seal; metrics.jsonl was taken from the run's folder as it was;
the base's config.json did not count; a run's result was taken without its manifest.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import hub
from small_runs import flags, forked, outcome, status, workplace

import train
from data import hub as hub_names
from data import token_cache
from data.snapshot import HubError, Snapshot
from lora.choose_adapter import check_whole
from lora.durable import verify_folder
from lora.repair import own_config, repair
from lora.run_folder import RunFolder, sealed

BITS = 64
CHECKPOINT_FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "config.json",
    "data.json",
    "metrics.jsonl",
    "manifest.json",
]
OWN_FILES = ["config.json", "data.json", "metrics.jsonl"]


def turned(bit: int) -> Callable[[Path], object]:
    """One bit of a file is another, the given one of 64 that lie evenly in it."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = min(bit * len(content) * 8 // BITS + bit % 8, len(content) * 8 - 1)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)

    return damage


WHOLE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
}
DAMAGES = WHOLE_DAMAGES | {f"bit {bit}": turned(bit) for bit in range(BITS)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nobody interrupted, and one that died after its checkpoints of steps 5 and 10."""
    folder = tmp_path_factory.mktemp("damage")
    with workplace(folder):
        assert train.main(flags(output="uninterrupted")) == 0
        given = flags(output="died", save_every=5)
        assert status(forked(given, killed_in_step_11)) == -signal.SIGKILL
        assert RunFolder(folder / "died", writes=False).saved_steps() == [5, 10]
        yield folder


def killed_in_step_11() -> None:
    step = train.train_step

    def killed(run: train.Run, number: int) -> Any:
        if number == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(run, number)

    train.train_step = killed


@pytest.fixture
def died(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "died", tmp_path / "run")


def resumed(run: Path) -> None:
    assert train.main(flags(output=str(run), resume=True)) == 0


def refused(run: Path) -> str:
    """Why a run does not go on. Its lock goes with the error's traceback, and nobody closes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises((ValueError, OSError)) as told:
            resumed(run)
        message = str(told.value)
        del told
        gc.collect()
    return message


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_no_damage_of_a_checkpoint_is_overlooked(died, file):
    """The one before it is the newest then, and so say the reasons."""
    run = RunFolder(died, writes=False)
    path = run.checkpoint(10) / file
    content = path.read_bytes()
    other = (run.checkpoint(5) / file).read_bytes()
    damages = DAMAGES | {"another step's": lambda path: path.write_bytes(other)}
    for name, damage in damages.items():
        damage(path)
        if path.exists() and path.read_bytes() == content:
            assert (name, file) == ("another step's", "adapter_config.json") or file in OWN_FILES
            continue
        newest, reasons = run.newest_checkpoint()
        assert newest == run.checkpoint(5), name
        assert len(reasons) == 1 and reasons[0].startswith(f"{run.checkpoint(10)} is damaged: ")
        with pytest.raises(ValueError, match="take another checkpoint"):
            check_whole(run.checkpoint(10))
        path.write_bytes(content)
    assert run.newest_checkpoint() == (run.checkpoint(10), [])


@pytest.mark.parametrize("damage", [*WHOLE_DAMAGES.values(), turned(40)])
@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_a_run_goes_back_from_a_damaged_checkpoint(place, died, capsys, file, damage):
    damage(died / "checkpoints/step-000010" / file)
    resumed(died)
    said = capsys.readouterr().out
    assert "going back to the checkpoint before it" in said and "going on after step 5," in said
    assert outcome(died) == outcome(place / "uninterrupted")


# --- the run's own files --------------------------------------------------------------------------


@pytest.mark.parametrize("file", OWN_FILES)
def test_no_damage_of_the_runs_own_files_is_overlooked(died, file):
    """A bit of metrics.jsonl behind what the checkpoint has is cut off in any case."""
    run = RunFolder(died, writes=True)
    kept = (run.checkpoint(10) / file).read_bytes()
    path = died / file
    damages = DAMAGES | {"another step's": lambda path: path.write_bytes(b'{"step": 1}\n')}
    for name, damage in damages.items():
        path.write_bytes(kept)
        damage(path)
        news = repair(run)
        assert len(news) == 1 and str(path) in news[0], name
        assert path.read_bytes() == kept
        assert repair(run) == []


@pytest.mark.parametrize("damage", [*WHOLE_DAMAGES.values(), turned(20)])
@pytest.mark.parametrize("file", OWN_FILES)
def test_a_run_goes_on_when_one_of_its_own_files_is_damaged(place, died, capsys, file, damage):
    damage(died / file)
    resumed(died)
    said = capsys.readouterr().out
    assert f"{died / file} is not what was written: put back as it was in" in said
    assert outcome(died) == outcome(place / "uninterrupted")


def test_settings_of_another_run_are_not_taken_for_its_own(place, died, capsys):
    """They are whole, but the checkpoint knows others."""
    given = flags(output="other", lr=1e-3, max_steps=1, epochs=None)
    assert train.main(given) == 0
    shutil.copy(place / "other/config.json", died / "config.json")
    resumed(died)
    assert "config.json is not what was written: put back" in capsys.readouterr().out
    assert outcome(died) == outcome(place / "uninterrupted")


def test_without_settings_and_a_whole_checkpoint_no_other_run_begins_there(died):
    (died / "config.json").unlink()
    for step in (5, 10):
        turned(9)(died / f"checkpoints/step-{step:06d}/state.json")
    assert "config.json is missing, and no checkpoint here is whole" in refused(died)


def test_what_becomes_of_the_files_of_a_run_that_lives_gets_into_no_checkpoint(place, tmp_path):
    """Edited, or removed, in the middle of it."""

    def spoiling(run: Path) -> Callable[[], None]:
        def setup() -> None:
            step = train.train_step

            def spoil(state: train.Run, number: int) -> Any:
                if number == 7:
                    (run / "config.json").write_text("{}")
                    (run / "data.json").unlink()
                    (run / "metrics.jsonl").unlink()
                return step(state, number)

            train.train_step = spoil

        return setup

    run = tmp_path / "run"
    assert status(forked(flags(output=str(run), save_every=5), spoiling(run))) == 0
    resumed(run)
    assert outcome(run) == outcome(place / "uninterrupted")


def test_a_record_with_another_step_behind_the_checkpoint_does_not_stay(place, died):
    path = died / "metrics.jsonl"
    lines = path.read_text().splitlines()
    (died / "metrics.jsonl").write_text("\n".join([*lines, lines[-1].replace("11", "2")]) + "\n")
    resumed(died)
    assert outcome(died) == outcome(place / "uninterrupted")


def test_without_any_copy_damaged_settings_are_refused(died):
    shutil.rmtree(died / "checkpoints")
    (died / "config.json").write_bytes((died / "config.json").read_bytes().replace(b"0.005", b"5"))
    assert "config.json is not what was written, and no checkpoint" in refused(died)


def test_a_seal_holds_for_what_was_sealed_only(tmp_path):
    run = RunFolder(tmp_path, writes=False)
    text = sealed({"lr": 2e-4, "model": "ü", "seed": 3})
    for bit in range(len(text) * 8):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "config.json").write_bytes(changed)
        try:
            assert "lr" not in own_config(run), bit  # then it is refused as no run's
        except ValueError as told:
            assert "config.json" in str(told)
    (tmp_path / "config.json").write_bytes(text)
    assert own_config(run)["lr"] == 2e-4


def test_a_lock_may_hold_anything_or_be_gone(place, died):
    for damage in (*WHOLE_DAMAGES.values(), turned(3)):
        copy = shutil.copytree(died, died.with_name(f"run-{len(os.listdir(died.parent))}"))
        damage(copy / "run.lock")
        resumed(copy)
        assert outcome(copy) == outcome(place / "uninterrupted")


# --- the result -----------------------------------------------------------------------------------


def test_no_damage_of_a_result_is_overlooked_but_its_card_may_be_edited(place, tmp_path):
    run = shutil.copytree(place / "uninterrupted", tmp_path / "run")
    adapter = run / "adapter"
    for file in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
        content = (adapter / file).read_bytes()
        for damage in DAMAGES.values():
            damage(adapter / file)
            if file == "manifest.json" and only_the_card_differs(adapter / file, content):
                continue
            with pytest.raises(ValueError, match="is damaged.*write it again with --resume"):
                check_whole(adapter)
            (adapter / file).write_bytes(content)
    (adapter / "README.md").write_text("My own words.")
    check_whole(adapter)
    turned(9)(adapter / "adapter_model.safetensors")
    resumed(run)
    verify_folder(adapter)
    assert outcome(run) == outcome(place / "uninterrupted")


def only_the_card_differs(manifest: Path, before: bytes) -> bool:
    """Whether it still says of all other files what it said."""
    try:
        texts = manifest.read_text(), before.decode()
        now, then = (json.loads(text)["files"] for text in texts)
        return now.pop("README.md") != then.pop("README.md") and now == then
    except (OSError, ValueError, KeyError):
        return False


# --- the token cache ------------------------------------------------------------------------------


def test_no_damage_of_the_token_cache_is_overlooked(place, capsys):
    (folder,) = (path for path in (place / "cache/llama-lora").iterdir() if path.is_dir())
    for file in (*token_cache.FILES, token_cache.MANIFEST):
        content = (folder / file).read_bytes()
        for name, damage in DAMAGES.items():
            damage(folder / file)
            assert token_cache.damage_of(folder) is not None, (file, name)
            (folder / file).write_bytes(content)
    assert token_cache.damage_of(folder) is None


@pytest.mark.parametrize("file", [*token_cache.FILES, token_cache.MANIFEST])
def test_a_run_makes_damaged_tokens_again(place, died, capsys, file):
    (folder,) = (path for path in (place / "cache/llama-lora").iterdir() if path.is_dir())
    turned(30)(folder / file)
    resumed(died)
    assert f"{folder} is damaged (" in capsys.readouterr().err
    assert token_cache.damage_of(folder) is None
    assert outcome(died) == outcome(place / "uninterrupted")


# --- the base -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_run_does_not_go_on_with_a_base_of_which_a_bit_has_changed(place, died, file):
    path = place / "model" / file
    content = path.read_bytes()
    try:
        for name, damage in DAMAGES.items():
            damage(path)
            assert "\n" not in refused(died), name
            path.write_bytes(content)
    finally:
        path.write_bytes(content)


def test_a_damaged_file_in_the_hubs_cache_is_told_and_deleted(place, tmp_path, monkeypatch):
    """By what it is named after: nobody needs to be asked."""
    with hub({"lab/model": place / "model"}) as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        downloaded = in_a_child("from data.hub import fetch_model; fetch_model('lab/model')")
        assert downloaded == 0
    (folder,) = (tmp_path / "home").rglob("snapshots/*")
    snapshot = Snapshot(folder, "lab/model", folder.name)
    snapshot.verify()
    for file in sorted(folder.iterdir()):
        blob, content = file.resolve(), file.read_bytes()
        for name, damage in DAMAGES.items():
            if name == "gone":
                continue  # then there is nothing to delete
            damage(blob)
            with pytest.raises(HubError, match="was deleted: run the same command again"):
                snapshot.verify()
            assert not blob.exists() and not file.is_symlink()
            blob.write_bytes(content)
            file.symlink_to(os.path.relpath(blob, folder))
    snapshot.verify()
    assert set(hub_names.SMALL_FILES) & set(os.listdir(folder)), "nothing was looked at"


def in_a_child(code: str) -> int:
    """Runs code where the Hub's client has not been imported yet, which reads the environment."""
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode
