"""What a user can get wrong: one line on stderr, exit status 2, and nothing left behind.

About 15 seconds. Seen to fail when: the lock was not looked at; the flags of a
resumed run were not compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import (
    command_line,
    flags,
    forked,
    short_rows,
    status,
)

import train
from lora.train_config import FREE_ON_RESUME


def entries(folder: Path) -> set[str]:
    """All files and folders, but for the token files' cache."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {path for path in paths if not path.startswith("cache")}


def refusal(capsys: pytest.CaptureFixture[str], *words: str, **given: Any) -> str:
    """What train.py answers to a mistake, checked to be one line that leaves nothing behind."""
    before = entries(Path.cwd())
    capsys.readouterr()
    try:
        code = train.command([*command_line(flags(**given)), *words])
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("train.py: ") and err.count("\n") == 1 and len(err) < 350, err
    assert "Traceback" not in err
    assert entries(Path.cwd()) == before
    return err.removeprefix("train.py: ")


@pytest.mark.parametrize("lr", [0, -2e-4, math.nan, math.inf])
def test_a_learning_rate_that_cannot_be(small, capsys, lr):
    assert refusal(capsys, lr=lr).startswith(f"--lr is {float(lr)}; it must be above 0")


@pytest.mark.parametrize(
    "words, message",
    [
        ("--learning-rate 1", "unknown flag --learning-rate"),
        ("--batchsize 4", "unknown flag --batchsize (did you mean --batch-size?)"),
        ("--lora_dropuot 0.1", "unknown flag --lora_dropuot (did you mean --lora-dropout?)"),
        ("--batch-size many", "argument --batch-size: invalid int value: 'many'"),
        ("--batch-size 0", "--batch-size is 0; it must be at least 1"),
        ("--keep 0", "--keep is 0; it must be at least 1"),
        ("--lora-dropout 1", "--lora-dropout is 1.0; it must be at least 0 and below 1"),
        ("--schedule step", "--schedule is step; choose one of cosine, linear, constant"),
        ("--max-steps -1", "--max-steps is -1; it must be at least 0"),
        ("--max-length 1", "--max-length is 1; "),
        ("--data-weights 1 2", "--data-weights is 1.0 2.0; give as many as --data has sets, 1"),
        ("--data x y --data-weights 1e308 1", "--data-weights is 1e+308; every share is above 0"),
        ("--data-weights 0", "--data-weights is 0.0; every share is above 0 and at most 1e9"),
        ("--lora-targets wq", "no layer is called ['wq']; the model has down_proj, gate_proj"),
        ("--lora-targets attention w", "no layer is called ['w']; the model has down_proj"),
        ("--lora-targets lm_head", "the head stays frozen, name layers below it"),
        ("--model nowhere/at/all", "nowhere/at/all"),
        ("--max-length 20", "nothing left to learn after the cut: 40"),
    ],
)
def test_a_flag_that_cannot_be(small, capsys, words, message):
    assert message in refusal(capsys, *words.split())


def test_a_sample_prompt_without_room_for_an_answer(small, capsys):
    """Seen to fail when the prompts were not looked at before the run's folder was made."""
    config = json.loads((small / "model" / "config.json").read_text())
    (small / "model" / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 300})
    )
    message = refusal(capsys, sample_prompts=("Hi", "word " * 400))
    assert "300" in message and "tokens" in message


@pytest.mark.parametrize("output", ["rows.jsonl", "rows.jsonl/run", "/proc/run", "/proc/1/x/run"])
def test_an_output_that_cannot_be_written(small, capsys, output):
    """Root may write anywhere, so no permission helps to test this."""
    assert output in refusal(capsys, output=output)


def test_an_output_that_may_not_be_written(small, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written; choose another" in refusal(capsys, output="a/b")


def test_an_output_that_holds_something(small, capsys):
    (small / "full").mkdir()
    (small / "full" / "letter.txt").touch()
    assert "full, which holds something already; add --resume" in refusal(capsys, output="full")


@pytest.mark.parametrize("resume", [False, True])
def test_an_output_that_another_live_run_uses(small, capsys, resume):
    process = forked(flags())
    try:
        while not (small / "run" / "metrics.jsonl").exists():
            time.sleep(0.02)
        os.kill(process, signal.SIGSTOP)
        message = refusal(capsys, resume=resume)
    finally:
        os.kill(process, signal.SIGKILL)
        status(process)
    assert message.startswith(f"run is in use by process {process} on ")


def parquet(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.Table.from_pylist(rows), path)


def cut(write: Callable[[Path], None], share: float) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path)
        os.truncate(path, int(path.stat().st_size * share))

    return written


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


LINES = "".join(json.dumps(row) + "\n" for row in short_rows(9))


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("x.jsonl", text(""), "x.jsonl"),
        ("x.jsonl", text('{"text": "Hi"}\n' * 9), "x.jsonl: 9 of 9 rows (100%) cannot be learnt"),
        ("x.jsonl", text(LINES + '{"a": "b'), "x.jsonl, line 10: not JSON"),
        ("x.jsonl", text("PAR1" + LINES), "x.jsonl, line 1: not JSON"),
        ("x.parquet", text(LINES), "x.parquet: not a whole parquet file"),
        ("x.parquet", cut(parquet(short_rows(99)), 0.6), "x.parquet: not a whole parquet file"),
        ("x.json", text(LINES), "x.json: not JSON"),
        ("x.json", text('{"a": 1}'), "x.json: holds an object, not a list"),
        ("x.csv", text("a,b"), "x.csv: only .parquet, .jsonl, .json files are read"),
        ("x.jsonl", None, "no file or folder at x.jsonl: check the path"),
    ],
)
def test_data_that_cannot_be_learnt_from(small, capsys, name, write, message):
    if write:
        write(small / name)
    assert message in refusal(capsys, data=(name,))


def test_a_flawed_row_if_none_is_allowed(small, capsys):
    (small / "x.jsonl").write_text(LINES + '{"text": "Hi"}\n')
    message = refusal(capsys, "--strict-data", data=("x.jsonl",))
    assert "row 10" in message and "not a conversation" in message


# --- going on with other settings ---------------------------------------------------------------

OTHERS = {
    "model": "other",
    "data": ("other.jsonl",),
    "data_weights": (2.0,),
    "lr": 1e-3,
    "schedule": "linear",
    "warmup_steps": 6,
    "min_lr_ratio": 0.5,
    "epochs": 3.0,
    "max_steps": 30,
    "batch_size": 5,
    "weight_decay": 0.1,
    "grad_clip": 2.0,
    "beta1": 0.8,
    "beta2": 0.99,
    "lora_rank": 8,
    "lora_alpha": 32.0,
    "lora_dropout": 0.2,
    "lora_targets": ("all",),
    "use_rslora": True,
    "max_length": 200,
    "train_on": "all",
    "strict_data": True,
    "max_dropped": 0.2,
    "eval_size": 4,
    "eval_data": "other",
    "dtype": "bf16",
    "seed": 1,
}
FREE = {
    "keep": 1,
    "save_every": 3,
    "eval_every": 5,
    "sample_prompts": ("Ho",),
    "sample_every": 3,
    "device": "cpu",
    "micro_batch_tokens": 300,
    "checkpoint_activations": "on",
}


@pytest.fixture
def stopped(small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after 2 steps."""
    with monkeypatch.context() as patch:
        patch.setattr(
            train, "evaluate_if_due", lambda run, done: done == 2 and os.kill(os.getpid(), 15)
        )
        assert train.main(flags()) == 143
    return small / "run"


def test_every_setting_is_either_free_on_resume_or_refused_by_name(stopped, capsys):
    names = {field.name for field in dataclasses.fields(train.TrainConfig)}
    assert OTHERS.keys() | FREE_ON_RESUME == names and not OTHERS.keys() & FREE_ON_RESUME
    for name, value in OTHERS.items():
        message = refusal(capsys, resume=True, **{name: value})
        flag = f"--{name.replace('_', '-')} (was "
        assert message.startswith("run was trained with other settings: " + flag), message
        assert f"now {value})" in message
    both = refusal(capsys, resume=True, lr=1e-3, seed=1)
    assert "--lr (was 0.005, now 0.001)" in both and "--seed (was 3407, now 1)" in both


@pytest.mark.parametrize("name", FREE)
def test_a_free_setting_may_change(stopped, capsys, name):
    assert train.main(flags(resume=True, **{name: FREE[name]})) == 0
    config = json.loads((stopped / "config.json").read_text())
    expected = list(FREE[name]) if isinstance(FREE[name], tuple) else FREE[name]
    assert config[name] == expected
    assert "going on after step 2" in capsys.readouterr().out


def test_a_setting_that_is_not_given_stays_as_it_was(stopped):
    assert train.main({"output": "run", "resume": True}) == 0
    config = json.loads((stopped / "config.json").read_text())
    assert (config["lr"], config["seed"], config["dtype"]) == (5e-3, 3407, "fp32")


def test_other_data_under_the_same_name(stopped, small, capsys):
    (small / "rows.jsonl").write_text(LINES * 4)
    assert refusal(capsys, resume=True).startswith("run was trained on other data than ")


def test_other_weights_under_the_same_name(stopped, small, capsys):
    path = small / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert refusal(capsys, resume=True).startswith("run was trained on other base than ")


def test_a_config_that_is_damaged_and_has_no_copy(stopped, capsys):
    shutil.rmtree(stopped / "checkpoints")
    for content in ("{", "[]", ""):
        (stopped / "config.json").write_text(content)
        assert "config.json" in refusal(capsys, resume=True)
