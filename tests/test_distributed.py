"""Several processes train what one trains: in fp32 and without dropout up to rounding.

Over gloo, on the CPU. Most processes are copies of this one; torchrun itself starts the others.
About 40 seconds. Seen to fail when: gradients were not summed; each process divided by its own
targets; the loss of one process was logged; the processes did not agree to stop.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    ROOT,
    adapter_weights,
    command_line,
    flags,
    metrics,
    together,
    workplace,
)

import train
from lora.run_folder import RunFolder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs of this file take place, those of one process among them."""
    folder = tmp_path_factory.mktemp("distributed")
    with workplace(folder):
        assert train.main(settings(output="alone")) == 0
        yield folder


def settings(**changes: Any) -> dict[str, Any]:
    return flags(**{"lora_dropout": 0.0, "sample_every": 0} | changes)


def assert_same_up_to_rounding(run: Path, other: Path) -> None:
    """Weights and all logged numbers; what is counted is equal."""
    weights, wanted = adapter_weights(run), adapter_weights(other)
    assert weights.keys() == wanted.keys()
    for name, tensor in weights.items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=0, atol=1e-6, err_msg=name)
    records, expected = metrics(run), metrics(other)
    assert len(records) == len(expected)
    for record, right in zip(records, expected, strict=True):
        assert record.keys() == right.keys()
        for name, value in record.items():
            is_measured = name in ("loss", "grad_norm", "eval_loss")
            tolerance = 1e-5 if name == "grad_norm" else 1e-6
            wanted = pytest.approx(right[name], rel=tolerance) if is_measured else right[name]
            assert value == wanted, (name, right)


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_end_with_the_weights_and_the_log_of_one(place, size):
    """20 steps, two epochs; the last step of an epoch has one conversation, held out are three."""
    before = set(os.listdir(place))
    assert together(size, settings(output=f"of-{size}")) == [0] * size
    assert_same_up_to_rounding(place / f"of-{size}", place / "alone")
    assert set(os.listdir(place)) - before == {f"of-{size}"}


def test_all_processes_have_the_same_weights_and_moments_after_every_step(place):
    """Bit for bit; otherwise they would drift apart, and only the first one's be saved."""

    def setup(rank: int) -> None:
        record = train.log_step

        def recorded(run: train.Run, done: int, step: train.Step) -> None:
            record(run, done, step)
            state = train.checkpoint_files(
                done, run.model, run.config.lora, run.base, run.optimizer, run.scaler
            )
            with open(f"state-of-{rank}", "ab") as file:
                file.write(b"".join(state.values()))

        train.log_step = recorded

    assert together(3, settings(output="drift", max_steps=6), setup) == [0] * 3
    states = [(place / f"state-of-{rank}").read_bytes() for rank in range(3)]
    assert states[0] == states[1] == states[2] != b""


def test_a_gradient_that_is_nan_in_one_process_changes_no_bit_in_any(place):
    """Neither of the weights nor of AdamW's moments; the step after it does again."""

    def setup(rank: int) -> None:
        loss_of, record, logged = train.summed_loss, train.log_step, []

        def broken(model: train.Llama, batch: train.MicroBatch) -> torch.Tensor:
            loss = loss_of(model, batch)
            return loss * float("nan") if rank == 1 and logged == [1, 2, 3] else loss

        def recorded(run: train.Run, done: int, step: train.Step) -> None:
            record(run, done, step)
            logged.append(done)
            state = train.checkpoint_files(
                0, run.model, run.config.lora, run.base, run.optimizer, run.scaler
            )
            with open(f"nan-of-{rank}", "a") as file:
                print(hashlib.sha256(b"".join(state.values())).hexdigest(), file=file)

        train.summed_loss, train.log_step = broken, recorded

    assert together(2, settings(output="nan", max_steps=6), setup) == [0, 0]
    states = [(place / f"nan-of-{rank}").read_text().split() for rank in range(2)]
    assert states[0] == states[1]
    assert states[0][2] == states[0][3] and len(set(states[0])) == 5
    assert [r["step"] for r in metrics(place / "nan") if r.get("grad_norm", 0) is None] == [4]


def test_a_process_without_work_takes_part(place):
    given = settings(batch_size=1, max_steps=20, epochs=None)
    assert train.main(given | {"output": "one-alone"}) == 0
    assert together(2, given | {"output": "one-of-2"}) == [0, 0]
    assert_same_up_to_rounding(place / "one-of-2", place / "one-alone")


def test_a_run_stopped_on_two_goes_on_on_one_and_the_other_way_round(place):
    """The signal reaches only one of the processes, and all leave that step out."""

    def setup(rank: int) -> None:
        train_step = train.train_step

        def stepped(run: train.Run, number: int) -> train.Step:
            if rank == 1 and number == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(run, number)

        train.train_step = stepped

    given = settings(output="moved", resume=True)
    statuses = together(2, given, setup)
    assert statuses == [train.STOPPED_BY_OTHERS, 143]
    assert RunFolder(place / "moved", writes=False).saved_steps() == [6]
    assert together(4, given | {"save_every": 5}, failing_at(13)) != [0] * 4
    assert train.main(given) == 0
    assert_same_up_to_rounding(place / "moved", place / "alone")


def failing_at(step: int) -> Callable[[int], None]:
    """All processes die in this step, as if the machine had."""

    def setup(rank: int) -> None:
        train_step = train.train_step

        def stepped(run: train.Run, number: int) -> train.Step:
            if number == step:
                os._exit(9)
            return train_step(run, number)

        train.train_step = stepped

    return setup


# --- torchrun itself ----------------------------------------------------------------------------


def torchrun(
    *words: str, program: tuple[str, ...] = ("train.py",), restarts: int = 0
) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher.append(f"--max-restarts={restarts}")
    program = tuple(str(ROOT / part) if part == "train.py" else part for part in program)
    return subprocess.Popen(
        [*launcher, "--nproc-per-node=2", *program, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ending(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err


def test_torchrun_trains_stops_at_sigterm_and_resumes(place):
    """It speaks with one voice: each line of the plan stands there once."""
    words = command_line(settings(output="launched", resume=True))
    process = torchrun(*words)
    while "held-out loss" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    code, out, err = ending(process)
    assert code != 0
    assert "the same command with --resume goes on from there" in out, err
    code, out, err = ending(torchrun(*words))
    assert code == 0, err
    assert out.count("everything goes to launched") == out.count("going on after step") == 1
    assert_same_up_to_rounding(place / "launched", place / "alone")


def test_torchrun_starts_all_again_when_one_is_killed_and_the_end_is_the_same(place):
    """Each life but the last ends for one of the processes in the middle of a step, or of a save.

    They go on from the newest checkpoint. Without the variable that `torchrun` sets, processes that
    are started again may look for those that are gone: pytorch/pytorch#135712.
    """
    code = """
import os, signal, sys, train
life, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
steps, save = train.train_step, train.save
def step(run, number):
    if (life, rank, number) in ((0, 1, 4), (1, 0, 7)):
        os.kill(os.getpid(), signal.SIGKILL)
    return steps(run, number)
def saved(run, done):
    if (life, rank, done) == (2, 0, 12):
        import lora.durable
        lora.durable.verify_written = lambda *written: os.kill(os.getpid(), signal.SIGKILL)
    save(run, done)
train.train_step, train.save, train.LONGEST_SAMPLE = step, saved, 4
sys.exit(train.command(sys.argv[1:]))
"""
    (place / "dies.py").write_text(code)
    words = command_line(settings(output="elastic", save_every=3, resume=True))
    code, out, err = ending(torchrun(*words, program=("dies.py",), restarts=3))
    assert code == 0, err
    wanted = [3, 6, 9]
    assert [f"going on after step {step}," in out for step in wanted] == [True] * 3
    assert_same_up_to_rounding(place / "elastic", place / "alone")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lr": -1.0}, "train.py: --lr is -1.0; it must be above 0"),
        ({"data": ("nowhere.jsonl",)}, "train.py: no file or folder at nowhere.jsonl"),
    ],
    ids=["before they meet", "while the others wait"],
)
def test_a_mistake_ends_all_processes_and_leaves_nothing(place, changes, message):
    words = command_line(settings(output="mistaken", **changes))
    code, out, err = ending(torchrun(*words), timeout=90)
    assert code != 0
    assert message in err
    assert not (place / "mistaken").exists()


def test_if_the_first_process_cannot_save_none_waits_for_it(place):
    code = "import sys, train\nimport lora.run_folder\n"
    code += "def fail(*a): raise OSError(28, 'No space left on device')\n"
    code += "lora.run_folder.publish_folder = fail\nsys.exit(train.command(sys.argv[1:]))\n"
    (place / "full.py").write_text(code)
    words = command_line(settings(output="full", save_every=3))
    code, out, err = ending(torchrun(*words, program=("full.py",)), timeout=90)
    assert code != 0
    assert "No space left on device" in err
