"""`python export.py` as its users meet it: all that it takes, and an export that is broken off.

About 10 seconds. Seen to fail when only errors of the system were cleaned up after, not
Ctrl-C; PyTorch was imported at the top; ~ was not expanded; a base that is missing was told without
a word of --model.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from export_places import WEIGHTS, entries, refusal
from exports import contents, read_all, same_bits, weights_files
from safetensors.torch import load_file
from small_runs import litter

import export
from lora.durable import UNFINISHED


@pytest.mark.parametrize("name", ["run", "run/adapter", "run/checkpoints/step-000004", "./run/"])
def test_a_run_its_adapter_and_a_checkpoint_are_exported(here, capsys, name):
    """The base is where training had it."""
    assert export.command([name, "--merged", "merged"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("merged: model with 4 matrices changed, ") and out.count("\n") == 1
    merged, base = read_all(here / "merged"), read_all(here / "model")
    adapter = load_file(here / "run" / "adapter" / "adapter_model.safetensors")
    assert adapter.keys() == load_file(here / "run/checkpoints/step-000004" / WEIGHTS).keys()
    for tensor, weight in merged.items():
        layer = f"base_model.model.{tensor.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" not in adapter:
            assert torch.equal(weight, base[tensor])
            continue
        a, b = (adapter[f"{layer}.lora_{matrix}.weight"].double() for matrix in "AB")
        wanted = base[tensor].double() + 16 / 4 * (b @ a)
        assert b.abs().max() > 0 and (weight - wanted).abs().max() <= 1e-6


def test_an_earlier_checkpoint_gives_another_model(here):
    assert export.command(["run/checkpoints/step-000002", "--merged", "two"]) == 0
    assert export.command(["run/checkpoints/step-000004", "--merged", "four"]) == 0
    assert not same_bits(read_all(here / "two"), read_all(here / "four"))


def test_an_empty_folder_and_a_home_are_places_to_write_to(here, monkeypatch):
    (here / "empty").mkdir()
    monkeypatch.setenv("HOME", str(here))
    for target in ("empty", "~/new", "deep/er/new"):
        assert export.command(["run", "--merged", target, "--dtype", "bf16"]) == 0
    results = [contents(here / name) for name in ("empty", "new", "deep/er/new")]
    assert results[0] == results[1] == results[2] and not litter(here)


def test_a_moved_base_is_named_by_model(here, capsys):
    (here / "model").rename(here / "moved")
    message = refusal(capsys, "run", "--merged", "merged")
    assert message.startswith("run/adapter: its base model is missing: ")
    assert message.endswith("; or give it by --model")
    assert export.command(["run", "--model", "moved", "--merged", "merged"]) == 0


def test_a_size_has_its_unit(here):
    for size in ("30KB", "30kb", "30000", "0.03 MB"):
        assert export.command(["run", "--merged", f"merged {size}", "--max-shard-size", size]) == 0
        assert len(weights_files(here / f"merged {size}")) > 2


def test_what_a_killed_export_left_is_removed_by_the_next(here):
    (here / f"{UNFINISHED}merged").mkdir()
    (here / f"{UNFINISHED}merged" / "model.safetensors").write_bytes(b"half")
    assert export.command(["run", "--merged", "merged"]) == 0
    assert not litter(here)
    assert not [path for path in (here / "merged").iterdir() if path.read_bytes() == b"half"]


def test_help_is_there_at_once_and_fits_a_terminal():
    code = "import sys, export\ntry:\n export.command(['--help'])\nexcept SystemExit:\n pass\n"
    code += "print(*{'torch', 'tokenizers', 'huggingface_hub'} & sys.modules.keys(), sep='+')"
    done = child("-c", code, COLUMNS="80")
    *lines, imported = done.stdout.splitlines()
    assert imported == "" and "--max-shard-size" in done.stdout
    assert max(map(len, lines)) <= 80 and done.stderr == ""


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment,
        timeout=100,
    )


def test_from_the_shell(here):
    script = str(ROOT / "export.py")
    done = child(script, "run", "--merged", "merged", "--dtype", "bf16")
    assert done.returncode == 0 and done.stderr == ""
    assert "(--dtype fp32 keeps it exact)" in done.stdout
    again = child(script, "run", "--merged", "merged")
    assert again.returncode == 2 and again.stdout == ""
    wanted = "--merged is merged, which holds something already; choose a new folder"
    assert again.stderr == f"export.py: {wanted}\n"


INTERRUPTED = """
import os, signal, sys, export
sync, left = os.fsync, [int(sys.argv.pop(1))]
def fsync(descriptor):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGINT)
    sync(descriptor)
os.fsync = fsync
sys.exit(export.command(sys.argv[1:]))
"""


@pytest.mark.parametrize("call", [1, 4])
def test_ctrl_c_leaves_nothing(here, call):
    """In the middle of the small files, and in that of the weights."""
    before = entries(here)
    done = child("-c", INTERRUPTED, str(call), "run", "--merged", "a/merged")
    assert (done.returncode, done.stdout) == (130, "") and "Traceback" not in done.stderr
    assert entries(here) == before
