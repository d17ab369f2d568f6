"""Gradients that are not finite: overflows of float16, which are ordinary, and NaN, which is not.

An overflow is injected by making a step's loss infinite, as float16 does when it is scaled too
high. PyTorch's scaler then leaves the step out and halves the scale. Takes about thirty seconds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import adapted, examples, run_in_memory, run_on_disk, weights_of

import train
from lora.checkpoint import checkpoint_files, trainable
from run import Run, prepare, resume

STEPS = 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Injected:
    """Spoils the loss of the attempts with these numbers, counted from 0; remembers the rates.

    Attributes:
        rates: of each attempt.
        applied: the rates of those that changed the weights.
    """

    def __init__(self, bad: set[int], value: float, stop_at: int | None) -> None:
        self.bad, self.value, self.stop_at = bad, value, stop_at
        self.rates: list[float] = []
        self.applied: list[float] = []
        self.original = train.gradients

    def gradients(self, run: Run, batches: Any) -> Any:
        attempt = len(self.rates)
        self.rates.append(run.optimizer.param_groups[0]["lr"])
        if attempt == self.stop_at:
            run.interrupt.signal = 15
        handles = []
        if attempt in self.bad:
            _, weight = trainable(run.model)[3]
            handles.append(weight.register_hook(lambda gradient: gradient * self.value))
        found = self.original(run, batches)
        for handle in handles:
            handle.remove()
        return found

    def note_applied(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.applied.append(optimizer.param_groups[0]["lr"])


@contextlib.contextmanager
def injected(
    run: Run, bad: set[int], value: float, stop_at: int | None = None
) -> Iterator[Injected]:
    """Within this context the run's bad attempts have a gradient times `value`.

    In the attempt `stop_at` the run is asked to stop.
    """
    spoiler = Injected(bad, value, stop_at)
    handle = run.optimizer.register_step_post_hook(spoiler.note_applied)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "gradients", spoiler.gradients)
        yield spoiler
    handle.remove()


def half_run(folder: Path, **flags: Any) -> Run:
    """A prepared run in float16, on the processor."""
    folder.mkdir(exist_ok=True)
    settings = {"dtype": "fp16", "max_steps": STEPS, "save_every": 100, "lora_dropout": 0.1}
    return prepare(run_on_disk(folder, **settings | flags))


def metrics(run: Run) -> list[dict[str, Any]]:
    """What was logged of each step, but for times and memory."""
    varying = {"seconds", "tokens_per_second", "peak_memory_bytes"}
    return [
        {k: v for k, v in record.items() if k not in varying} for record in run.folder.records()
    ]


def test_the_scaler_is_on_for_float16_only(tmp_path):
    assert half_run(tmp_path / "a").scaler.is_enabled()
    assert not half_run(tmp_path / "b", dtype="bf16").scaler.is_enabled()
    assert not half_run(tmp_path / "c", dtype="fp32").scaler.is_enabled()


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_adapter_and_its_gradients_are_float32(dtype, tmp_path):
    """Or the scaler refuses to unscale them. Seen to fail when A and B had the base's dtype."""
    run = half_run(tmp_path / "run", dtype=dtype)
    seen: set[torch.dtype] = set()
    run.optimizer.register_step_pre_hook(
        lambda *_: seen.update(p.grad.dtype for _, p in trainable(run.model))
    )
    assert train.train_step(run, 0).is_finite
    assert seen == {torch.float32} == {p.dtype for _, p in trainable(run.model)}
    assert run.model.lm_head.weight.dtype == {
        "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32
    }[dtype]  # fmt: skip


def test_a_skipped_step_is_taken_again_and_advances_nothing(tmp_path):
    """With an overflow at steps 0, 3 and 4, against the run without one.

    Seen to fail when the schedule advanced on a skip, when a skipped step counted as done, when
    the scale was not updated, and when the optimizer stepped in spite of the overflow.
    """
    smooth = half_run(tmp_path / "smooth")
    resume(smooth)
    with injected(smooth, set(), 1.0) as none:
        assert train.train(smooth, 0) == STEPS
    assert none.rates == none.applied and len(set(none.rates)) == STEPS

    run = half_run(tmp_path / "bumpy")
    resume(run)
    before = run.scaler.get_scale()
    # Attempts 0, 4 and 6 are the first at steps 0, 3 and 4.
    with injected(run, {0, 4, 6}, float("inf")) as some:
        assert train.train(run, 0) == STEPS
    assert some.applied == none.applied
    assert some.rates == [none.rates[i] for i in (0, 0, 1, 2, 3, 3, 4, 4, 5, 6, 7)]
    assert run.scaler.get_scale() == before / 8
    assert [r["step"] for r in metrics(run)] == list(range(1, STEPS + 1))
    assert {float(s["step"]) for s in run.optimizer.state.values()} == {float(STEPS)}
    for a, b in zip(metrics(run), metrics(smooth), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)  # another scale rounds otherwise
        assert (a["lr"], a["tokens"], a["epoch"]) == (b["lr"], b["tokens"], b["epoch"])


def test_a_skipped_step_leaves_weights_and_moments_alone(tmp_path):
    run = half_run(tmp_path / "run")
    with injected(run, {1}, float("inf")):
        train.train_step(run, 0)
        before, moments = weights_of(run.model), moments_of(run)
        assert not train.train_step(run, 1).is_finite
    assert all(torch.equal(before[n], w) for n, w in weights_of(run.model).items())
    assert all(torch.equal(a, b) for a, b in zip(moments, moments_of(run), strict=True))


def moments_of(run: Run) -> list[torch.Tensor]:
    return [v.clone() for state in run.optimizer.state.values() for v in state.values()]


def test_a_run_stopped_right_after_a_skip_goes_on_as_if_it_had_not(tmp_path):
    """Bit for bit. Seen to fail when the scaler's state was not restored."""
    bad = {2, 3}
    whole = half_run(tmp_path / "whole")
    resume(whole)
    with injected(whole, bad, float("inf")):
        train.train(whole, 0)

    first = half_run(tmp_path / "parts")
    resume(first)
    with injected(first, bad, float("inf"), stop_at=4):  # after two steps and two skips
        done = train.train(first, 0)
    assert done == 2
    train.save(first, done)
    state = json.loads((first.folder.checkpoint(2) / "state.json").read_text())
    assert state["scaler"]["scale"] == first.scaler.get_scale() == 65536.0 / 4
    assert first.folder.lock is not None
    first.folder.lock.close()

    second = half_run(tmp_path / "parts", resume=True)
    assert resume(second) == 2
    assert second.scaler.state_dict() == first.scaler.state_dict()
    with injected(second, set(), 1.0):
        train.train(second, 2)
    assert all(
        torch.equal(weights_of(whole.model)[n], w) for n, w in weights_of(second.model).items()
    )
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    assert metrics(second) == metrics(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_never_reach_the_weights(value, tmp_path):
    """In float32, where no scaler looks. The step counts, and its record says so.

    Seen to fail when the norm was not looked at.
    """
    run = half_run(tmp_path / "run", dtype="fp32")
    resume(run)
    with injected(run, {0, 3, 4}, value) as some:
        train.train(run, 0)
    assert len(some.rates) == STEPS and len(some.applied) == STEPS - 3
    assert [r["step"] for r in metrics(run) if r["grad_norm"] is None] == [1, 4, 5]
    assert all(w.isfinite().all() for w in weights_of(run.model).values())
    train.save(run, STEPS)


def test_the_progress_bar_tells_of_such_steps_while_they_last(tmp_path, monkeypatch):
    run, troubles = half_run(tmp_path / "run", dtype="fp32"), []
    monkeypatch.setattr(train.StepBar, "update", lambda bar, *shown: troubles.append(shown[-1]))
    resume(run)
    with injected(run, {0, 3, 4}, float("inf")):
        train.train(run, 0)
    told = {
        number: f"{count} steps left out: not finite" for number, count in [(0, 1), (3, 1), (4, 2)]
    }
    assert troubles == [told.get(number, "") for number in range(STEPS)]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_ten_such_steps_in_a_row_end_the_run(dtype, tmp_path):
    """With one line that names the last good step; and the checkpoints stay good.

    In float16 the scale falls first, until it cannot be the reason any more. Seen to fail when
    broken steps were never counted.
    """
    run = half_run(tmp_path / "run", dtype=dtype, max_steps=40, save_every=2)
    resume(run)
    with (
        injected(run, set(range(5, 200)), float("nan")) as some,
        pytest.raises(
            ValueError, match="not finite in 10 steps in a row; the last good one was step 5"
        ) as caught,
    ):
        train.train(run, 0)
    assert "\n" not in str(caught.value)
    assert len(some.applied) == 5
    checkpoint, damaged = run.folder.newest_checkpoint()
    assert checkpoint and not damaged
    assert all(w.isfinite().all() for w in weights_of(run.model).values())


def test_nine_such_steps_do_not(tmp_path):
    run = half_run(tmp_path / "run", dtype="fp32", max_steps=30)
    resume(run)
    bad = {*range(2, 11), *range(12, 21)}
    with injected(run, bad, float("nan")) as some:
        assert train.train(run, 0) == 30
    assert len(some.applied) == 30 - 18


@pytest.mark.parametrize("where", ["weight", "moment"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(where, value, tmp_path):
    """The checkpoint before it stays, though only one is kept."""
    run = half_run(tmp_path / "run", dtype="fp32", keep=1)
    resume(run)
    train.train_step(run, 0)
    train.save(run, 1)
    train.train_step(run, 1)
    _, weight = trainable(run.model)[-1]
    with torch.no_grad():
        (weight if where == "weight" else run.optimizer.state[weight]["exp_avg_sq"])[0, 0] = value
    with pytest.raises(ValueError, match="not finite after step 2; nothing was saved"):
        train.save(run, 2)
    assert run.folder.saved_steps() == [1] and run.folder.newest_checkpoint()[1] == []


def test_a_finite_state_is_saved_before_the_first_step():
    """When the optimizer has no moments yet."""
    run = run_in_memory(adapted(), examples())
    files = checkpoint_files(0, run.model, run.config.lora, run.base, run.optimizer, run.scaler)
    assert "optimizer.safetensors" in files
