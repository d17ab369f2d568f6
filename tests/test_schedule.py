"""The learning rate against transformers' schedules, and as a function of nothing but the step."""

from __future__ import annotations

import inspect

import pytest
import torch
from training_runs import adapted, examples, run_in_memory

import train
from lora.schedule import learning_rate
from lora.train_config import TrainConfig

transformers = pytest.importorskip("transformers")
THEIRS = {
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "linear": transformers.get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup, steps: transformers.get_constant_schedule_with_warmup(
        optimizer, warmup
    ),
}


def rates(schedule: str, warmup: int, steps: int, until: int) -> list[float]:
    """What transformers' schedule gives for steps 0 to `until`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = THEIRS[schedule](optimizer, warmup, steps)
    found = []
    for _ in range(until):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def config(**settings) -> TrainConfig:
    return TrainConfig(lr=3e-4, **settings)


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize("warmup, steps", [(0, 1), (0, 50), (1, 2), (5, 50), (49, 50), (7, 1000)])
def test_after_the_warm_up_it_is_transformers(schedule, warmup, steps):
    """Seen to fail when the cosine had a whole period, and when it counted from step 0."""
    settings = config(schedule=schedule, warmup_steps=warmup)
    ours = [learning_rate(step, steps, settings) for step in range(steps)]
    assert ours[warmup:] == pytest.approx(rates(schedule, warmup, steps, steps)[warmup:], rel=1e-12)


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize("warmup", [1, 5, 20])
def test_the_warm_up_rises_in_a_line_and_wastes_no_step(schedule, warmup):
    """Transformers' own starts at 0, so that its warm-up with one step more, less that, is ours.

    Seen to fail when the first rate was 0.
    """
    settings = config(schedule=schedule, warmup_steps=warmup)
    ours = [learning_rate(step, 100, settings) for step in range(warmup)]
    assert ours == pytest.approx(rates(schedule, warmup + 1, 100, warmup + 1)[1:], rel=1e-12)
    assert ours[0] > 0 and max(ours) < 3e-4 == learning_rate(warmup, 100, settings)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_behind_the_end_it_stays_at_its_lowest(schedule):
    """A cosine that is not stopped rises again. Seen to fail when it was not."""
    for least in (0.0, 0.1):
        settings = config(schedule=schedule, warmup_steps=5, min_lr_ratio=least)
        behind = [learning_rate(step, 50, settings) for step in (50, 51, 60, 95, 1000)]
        assert behind == pytest.approx([least * 3e-4] * 5, abs=1e-18)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_lowest_rate_is_the_share_that_was_asked_for(schedule):
    half = config(schedule=schedule, warmup_steps=5, min_lr_ratio=0.5)
    whole = config(schedule=schedule, warmup_steps=5)
    for step in range(5, 60):
        wanted = 0.5 * 3e-4 + 0.5 * learning_rate(step, 50, whole)
        assert learning_rate(step, 50, half) == pytest.approx(wanted)


def test_a_run_shorter_than_its_warm_up_only_rises():
    settings = config(warmup_steps=10)
    found = [learning_rate(step, 4, settings) for step in range(4)]
    assert found == sorted(found) and found[-1] < 3e-4


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_steps_and_rates_do_not_depend_on_how_many_processes_there_are(size):
    """Seen to fail when the steps of an epoch were divided by the number of processes."""
    assert list(inspect.signature(learning_rate).parameters) == ["step", "steps", "config"]
    run = run_in_memory(adapted(), examples(), batch_size=3, epochs=2.0)
    run.world.size = size
    assert run.steps == 6  # 8 conversations in threes, twice


def test_each_step_is_taken_at_its_rate():
    """Seen to fail when the rate was set after the step."""
    run = run_in_memory(adapted(), examples(), max_steps=12, warmup_steps=3, lr=1e-2)
    taken: list[float] = []
    run.optimizer.register_step_pre_hook(
        lambda optimizer, *_: taken.append(optimizer.param_groups[0]["lr"])
    )
    for step in (0, 1, 2, 3, 4, 11, 7):
        train.train_step(run, step)
    assert taken == [learning_rate(step, 12, run.config) for step in (0, 1, 2, 3, 4, 11, 7)]
