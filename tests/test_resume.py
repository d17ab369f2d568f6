"""A run that was stopped after any step and resumed has the bits of one that was not.

Compared are the sha256 of every file of the last checkpoint (adapter, optimizer, state) and of the
adapter, and metrics.jsonl but for times, speed and memory. 20 steps in two epochs of 10, with
dropout, two to three micro-batches a step, and evaluations. About 40 seconds.

Seen to fail when: the dropout's seed was not set at each step; moments were not loaded, or by
position; the epoch's order came from a running generator; the scaler's state was not loaded;
metrics were cut one step too late; the evaluation before the first step was logged twice.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import flags, litter, metrics, outcome

import train
from data.batches import order_of_epoch
from lora.run_folder import RunFolder

STEPS, EPOCH = 20, 10


@pytest.fixture(autouse=True)
def fresh_order() -> None:
    """Nothing is left of the order of data that another test's run had, as in a new process."""
    order_of_epoch.cache_clear()


class Abrupt(BaseException):
    """The end of a process, without any chance to save."""


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    """What comes of the run if nothing stops it."""
    found = outcome(place / "uninterrupted")
    assert [r["step"] for r in found["metrics"] if "lr" in r] == list(range(1, STEPS + 1))
    assert sum("eval_loss" in r for r in found["metrics"]) == 6
    return found


def hook(patch: pytest.MonkeyPatch, name: str, before: Callable | None, after: Callable | None):
    """Lets something happen before or after each call of a function of train.py."""
    function = getattr(train, name)

    def hooked(run: Any, number: Any, *more: Any) -> Any:
        if before:
            before(number)
        result = function(run, number, *more)
        if after:
            after(number)
        return result

    patch.setattr(train, name, hooked)


def when(step: int, action: Callable[[], None]) -> Callable[[int], None]:
    return lambda number: action() if number == step else None


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def die() -> None:
    raise Abrupt


def stopped(**given: Any) -> int | None:
    """The exit status of a run that is stopped; None if it died."""
    try:
        return train.main(flags(**given))
    except Abrupt:
        return None


def steps_done(folder) -> int:
    return max(RunFolder(folder, writes=False).saved_steps(), default=0)


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_a_run_stopped_by_sigterm_after_any_step_goes_on_to_the_same_bits(
    place, expected, monkeypatch, step
):
    output = f"term-{step}"
    with monkeypatch.context() as patch:
        if step:
            record = train.log_step
            patch.setattr(
                train, "log_step", lambda run, d, s: record(run, d, s) or when(step, TERM)(d)
            )
        else:
            hook(patch, "evaluate_if_due", None, when(0, TERM))
        assert stopped(output=output) == 143
    assert steps_done(place / output) == step
    assert train.main(flags(output=output, resume=True)) == 0
    assert outcome(place / output) == expected
    assert litter(place / output) == []


TERM, INT = send(signal.SIGTERM), send(signal.SIGINT)


@pytest.mark.parametrize("step", range(STEPS))
def test_a_sigint_inside_a_step_leaves_it_out(place, expected, monkeypatch, step):
    """It comes when the gradients are computed and the weights are not yet changed."""
    output = f"int-{step}"
    with monkeypatch.context() as patch:
        clip, current = torch.nn.utils.clip_grad_norm_, []

        def clipped(*arguments: Any) -> Any:
            if current and current[-1] == step:
                INT()
            return clip(*arguments)

        hook(patch, "train_step", current.append, lambda number: current.clear())
        patch.setattr("torch.nn.utils.clip_grad_norm_", clipped)
        assert stopped(output=output) == 130
    assert steps_done(place / output) == step
    assert train.main(flags(output=output, resume=True)) == 0
    assert outcome(place / output) == expected


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_that_died_after_any_save_goes_on_to_the_same_bits(
    place, expected, monkeypatch, step
):
    output = f"saved-{step}"
    with monkeypatch.context() as patch:
        hook(patch, "save", None, when(step, die))
        assert stopped(output=output, save_every=step) is None
    assert train.main(flags(output=output, resume=True)) == 0
    assert outcome(place / output) == expected


@pytest.mark.parametrize("step", range(STEPS))
def test_a_run_that_died_in_any_step_goes_on_from_the_checkpoint_before(
    place, expected, monkeypatch, capsys, step
):
    """What it wrote into the metrics after the checkpoint stands there once in the end."""
    output = f"died-{step}"
    with monkeypatch.context() as patch:
        hook(patch, "train_step", when(step, die), None)
        assert stopped(output=output, save_every=7) is None
    assert steps_done(place / output) == step // 7 * 7
    capsys.readouterr()
    assert train.main(flags(output=output, resume=True)) == 0
    told = f"going on after step {step // 7 * 7}," in capsys.readouterr().out
    assert told == (step >= 7)
    assert outcome(place / output) == expected


def test_a_run_stopped_after_every_single_step_ends_in_the_same_bits(place, expected, monkeypatch):
    with monkeypatch.context() as patch:
        record = train.log_step
        patch.setattr(train, "log_step", lambda run, d, s: record(run, d, s) or TERM())
        statuses = [stopped(output="each", resume=True) for _ in range(STEPS + 1)]
    assert statuses == [143] * STEPS + [0]
    assert outcome(place / "each") == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "bf16"},
        {"dtype": "fp16"},
        {"checkpoint_activations": "on"},
        {"lora_targets": ("all",), "use_rslora": True, "weight_decay": 0.1},
        {"data": ("rows.jsonl", "more.jsonl"), "data_weights": (1.0, 3.0), "max_steps": 12},
        {"seed": 2**63 - 1, "schedule": "linear", "train_on": "all", "eval_every": 0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_the_same_holds_with_other_settings(place, monkeypatch, settings, request):
    """In float16 a step overflows before the run is stopped, so its scaler has a state."""
    (place / "more.jsonl").write_text((place / "rows.jsonl").read_text().replace("the", "that"))
    name = request.node.callspec.id
    settings = {"epochs": None, "max_steps": 12} | settings
    train.main(flags(output=f"{name}-whole", **settings))
    with monkeypatch.context() as patch:
        hook(patch, "train_step", when(10, TERM), None)
        assert stopped(output=f"{name}-stopped", **settings) == 143
    assert train.main(flags(output=f"{name}-stopped", resume=True, **settings)) == 0
    assert outcome(place / f"{name}-stopped") == outcome(place / f"{name}-whole")


def test_a_finished_run_that_is_resumed_stays_as_it_is(place, expected, capsys):
    capsys.readouterr()
    assert train.main(flags(output="uninterrupted", resume=True)) == 0
    assert outcome(place / "uninterrupted") == expected
    assert f"going on after step {STEPS}" in capsys.readouterr().out


def test_resuming_where_there_is_nothing_yet_starts(place, expected, capsys):
    assert train.main(flags(output="fresh", resume=True)) == 0
    assert outcome(place / "fresh") == expected
    assert "going on" not in capsys.readouterr().out


def test_a_resumed_run_trains_all_that_was_trained_and_nothing_else(place, monkeypatch):
    """Its optimizer holds the model's own weights, and its first step changes each."""
    with monkeypatch.context() as patch:
        hook(patch, "train_step", when(5, TERM), None)
        stopped(output="frozen")
    run = train.prepare(flags(output="frozen", resume=True))
    assert train.resume(run) == 5
    trained = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    adapter = {f"model.layers.0.self_attn.{p}_proj.lora_{m}.weight" for p in "qkvo" for m in "AB"}
    assert trained.keys() == adapter
    held = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in trained.values()}
    before = {name: p.detach().clone() for name, p in trained.items()}
    train.train_step(run, 5)
    assert all(not torch.equal(before[name], p) for name, p in trained.items())
    run.folder.lock.close()


def test_the_same_step_again_is_not_saved_again(place, expected):
    """A checkpoint that is whole is not put at risk by replacing it with itself."""
    checkpoint = place / "uninterrupted" / "checkpoints" / f"step-{STEPS:06d}"
    before = {path.name: path.stat().st_ino for path in checkpoint.iterdir()}
    assert train.main(flags(output="uninterrupted", resume=True)) == 0
    assert {path.name: path.stat().st_ino for path in checkpoint.iterdir()} == before


def test_the_metrics_of_a_run_that_begins_anew_hold_nothing_older(place, expected, monkeypatch):
    """Where a run died before its first checkpoint, and another line was cut in two."""
    with monkeypatch.context() as patch:
        hook(patch, "train_step", when(3, die), None)
        stopped(output="anew")
    with (place / "anew" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [r["step"] for r in metrics(place / "uninterrupted") if "lr" in r][-1] == STEPS
    assert train.main(flags(output="anew", resume=True)) == 0
    assert outcome(place / "anew") == expected
