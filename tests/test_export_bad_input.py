"""What a user of export.py can get wrong: one line on stderr, status 2, and nothing left behind.

About 5 seconds. Seen to fail when the base's hash was not compared; the manifest of a
checkpoint was not looked at; an unfinished folder was told by the name of a link to it; the
checkpoints of an unfinished run were not mentioned; the target was not looked at before the work;
flags without effect were taken; a size went through floating point; shapes were not compared;
the right to write was not asked for.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from export_places import WEIGHTS, refusal
from exports import make_pair, weights_files
from safetensors.torch import load_file, save_file

import export
from lora.durable import UNFINISHED


@pytest.mark.parametrize(
    "words, message",
    [
        ("run", "nothing to do: add --merged FOLDER, --gguf FILE or --push USER/NAME"),
        ("run --merged", "--merged lacks the folder to write to; add it, or --push USER/NAME"),
        ("--merged new", "the following arguments are required: ADAPTER; see export.py --help"),
        ("run --merge new", "unknown flag --merge (did you mean --merged?); see export.py --help"),
        ("run new --merged", "unexpected argument 'new'; "),
        ("run --merged new --dtype int8", "--dtype is 'int8'; choose one of auto, fp32, bf16"),
        ("run --merged new --dtype float32", "--dtype is 'float32'; choose one of auto, fp32"),
        ("run --gguf new --type q4_0", "--type is 'q4_0'; choose one of f16, bf16, q8_0"),
        ("run --gguf new --dtype fp32", "--dtype has no effect without --merged; add it"),
        ("run --gguf n --max-shard-size 1GB", "--max-shard-size has no effect without --merged"),
        ("run --merged new --type bf16", "--type has no effect without --gguf; add it"),
        ("run --merged new --private", "--private has no effect without --push; add it"),
        ("run --merged new --gguf ./new", "--merged and --gguf are both new; choose two places"),
        ("run --merged run", "--merged is run, which holds something already; choose a new"),
        ("run --merged run/config.json", "--merged is run/config.json, which holds something"),
        ("run --gguf run/config.json", "--gguf is 'run/config.json', which is there already"),
        ("run --merged run/config.json/new", "/run/config.json is a file; choose another place"),
        ("run --gguf run/config.json/a/b", "/run/config.json is a file; choose another place"),
        ("run --merged /proc", "--merged is /proc, which holds something already; choose a new"),
        ("nowhere --merged new", "nowhere: there is no such adapter; give its folder or that of"),
        ("model --merged new", "model: has no adapter_config.json, so it is no adapter and no"),
        ("run/config.json --merged new", "run/config.json: has no adapter_config.json, so it is"),
        ("run --model ./none --merged new", "no folder at none: check the path, or give a Hub id"),
        ("run --model demo --merged new", "run/adapter: was trained on other weights than demo"),
        ("run --model run --merged new", "run has neither model.safetensors nor model.safetensors"),
    ],
)
def test_a_command_that_cannot_be(here, capsys, words, message):
    assert message in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    "size", ["0", "0GB", "-1GB", "5 PB", "GB", "five", "", "1e9", "nan", "inf", "0.1B", "5GiB"]
)
def test_a_size_that_is_none(here, capsys, size):
    message = refusal(capsys, "run", "--merged", "new", f"--max-shard-size={size}")
    assert message == f"--max-shard-size is {size!r}; write a number and a unit, as 5GB"


def test_a_size_beyond_all_bounds_is_one_file(here):
    assert export.command(["run", "--merged", "new", "--max-shard-size", "9" * 400 + "TB"]) == 0
    assert len(weights_files(here / "new")) == 1


def edit_tensor(path: Path, name: str) -> None:
    """Changes one number of one tensor of a file."""
    tensors = load_file(path)
    tensors[name][0, 0] += 1
    save_file(tensors, path)


def other_base(here: Path) -> None:
    edit_tensor(here / "model" / "model.safetensors", "model.layers.0.mlp.up_proj.weight")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHECKPOINT = Path("run/checkpoints/step-000004")
SPOILT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "another base of the same shapes": (
        other_base,
        "run",
        "run/adapter: was trained on other weights than model has; use its own base, model",
    ),
    "a checkpoint with a flipped bit": (
        lambda here: flip(CHECKPOINT / WEIGHTS),
        str(CHECKPOINT),
        f"{CHECKPOINT} is damaged: {WEIGHTS} is not what was written; take another checkpoint",
    ),
    "a checkpoint without its manifest": (
        lambda here: (CHECKPOINT / "manifest.json").unlink(),
        str(CHECKPOINT),
        f"{CHECKPOINT} is damaged: manifest.json cannot be read; take another checkpoint",
    ),
    "a checkpoint that is being written": (
        lambda here: CHECKPOINT.rename(CHECKPOINT.with_name(f"{UNFINISHED}step-000004")),
        f"run/checkpoints/{UNFINISHED}step-000004",
        "is being written, or was when a run was killed; take a whole checkpoint",
    ),
    "a checkpoint whose first file is being written": (
        lambda here: (here / "run/checkpoints" / f"{UNFINISHED}step-000006").mkdir(),
        f"run/checkpoints/{UNFINISHED}step-000006",
        "is being written, or was when a run was killed; take a whole checkpoint",
    ),
    "a link to a checkpoint that is being written": (
        lambda here: (
            CHECKPOINT.rename(CHECKPOINT.with_name(f"{UNFINISHED}step-000004")),
            (here / "link").symlink_to(here / f"run/checkpoints/{UNFINISHED}step-000004"),
        ),
        "link",
        "link: is being written, or was when a run was killed; take a whole checkpoint",
    ),
    "a run that is not finished": (
        lambda here: shutil.rmtree("run/adapter"),
        "run",
        f"run: is a run that is not finished; give its checkpoint {CHECKPOINT}",
    ),
    "the result of a run that is not finished": (
        lambda here: shutil.rmtree("run/adapter"),
        "run/adapter",
        f"run: is a run that is not finished; give its checkpoint {CHECKPOINT}, or finish it",
    ),
    "a run that is not finished, its newest checkpoint damaged": (
        lambda here: (shutil.rmtree("run/adapter"), flip(CHECKPOINT / WEIGHTS)),
        "run",
        "run: is a run that is not finished; give its checkpoint run/checkpoints/step-000002",
    ),
    "a run without a checkpoint": (
        lambda here: (shutil.rmtree("run/adapter"), shutil.rmtree("run/checkpoints")),
        "run",
        "run: has no adapter_config.json, so it is no adapter and no finished run",
    ),
    "an adapter without weights": (
        lambda here: (here / "run/adapter" / WEIGHTS).unlink(),
        "run",
        f"run/adapter is damaged: {WEIGHTS} is missing; write it again with --resume",
    ),
    "a base without a tokenizer": (
        lambda here: (here / "model/tokenizer.json").unlink(),
        "run",
        "model",
    ),
    "a base without weights": (
        lambda here: (here / "model/model.safetensors").unlink(),
        "run",
        "model has neither model.safetensors nor model.safetensors.index.json",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_spoilt_is_refused(here, capsys, name):
    spoil, adapter, message = SPOILT[name]
    spoil(here)
    assert message in refusal(capsys, adapter, "--merged", "a/new")


def stranger(here: Path, **config) -> None:
    """An adapter that is in no run, and whose weights do not say what they were trained on."""
    shutil.copytree(here / "run/adapter", here / "stranger")
    path = here / "stranger/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    tensors = load_file(here / "stranger" / WEIGHTS)
    save_file(tensors, here / "stranger" / WEIGHTS, {"format": "pt"})


def test_an_adapter_that_names_no_base(here, capsys):
    stranger(here, base_model_name_or_path=None)
    message = refusal(capsys, "stranger", "--merged", "new")
    assert message == "stranger: does not name its base model; give it by --model"
    assert export.command(["stranger", "--model", "model", "--merged", "new"]) == 0


def test_an_adapter_whose_base_is_neither_here_nor_reachable(here, capsys):
    stranger(here, base_model_name_or_path="some/llama")
    message = refusal(capsys, "stranger", "--merged", "new")
    assert message.startswith("stranger: its base model is missing: ") and "some/llama" in message
    assert message.endswith("; or give it by --model")


def test_a_model_that_the_adapter_does_not_fit(here, capsys):
    """Its weights do not say on what they were trained, and so only the shapes can tell."""
    stranger(here)
    other = make_pair(here / "other", hidden_size=36, num_hidden_layers=1).base
    message = refusal(capsys, "stranger", "--model", str(other), "--merged", "new")
    assert message.startswith("stranger: does not fit this model: adapter_model.safetensors has")


@pytest.mark.parametrize("flag", ["merged", "gguf"])
def test_a_parent_folder_that_may_not_be_written(here, capsys, monkeypatch, flag):
    """Root may write anywhere, so no permission helps to test this."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = refusal(capsys, "run", f"--{flag}", "a/new")
    assert message == f"--{flag} is a/new, but {here} cannot be written; choose another place"


def test_the_working_directory_is_not_replaced(here, capsys, monkeypatch):
    """It could be, but whoever stands in it would see nothing of what was written."""
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    message = refusal(capsys, "../run", "--merged", ".")
    assert message == "--merged is ., which cannot be replaced; choose a new folder in it"


def test_a_parent_folder_that_cannot_be_written(here, capsys):
    """/proc takes no folders, not even from root, whom no permission holds back."""
    message = refusal(capsys, "run", "--merged", "/proc/merged")
    assert message.startswith("/proc/merged could not be written (No such file or directory)")
    assert message.endswith("make room, or choose another place")
