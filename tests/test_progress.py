"""What the bar says while a run trains."""

from __future__ import annotations

import math
import random

import pytest

from lora.progress import SMOOTHING, Step, StepBar


def bar_after(losses: list[float], before: list[float] | None = None) -> StepBar:
    before = before or []
    bar = StepBar(20, len(before), before, shown=False)
    for loss in losses:
        bar.update(Step(loss, 1.0, 10, 5, 0.1), lr=1e-4, trouble="")
    return bar


def test_the_average_is_the_exponential_mean_of_its_definition():
    rng = random.Random(0)
    losses = [rng.uniform(0, 3) for _ in range(20)]
    weights = [(1 - SMOOTHING) * SMOOTHING ** (19 - i) for i in range(20)]
    weights[0] = SMOOTHING**19
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    assert bar_after(losses).average == pytest.approx(expected)


@pytest.mark.parametrize("done", [0, 1, 7, 20])
def test_the_average_of_a_run_that_goes_on_is_that_of_one_that_never_stopped(done):
    """Seen to fail when it began anew."""
    losses = [float(i % 5) for i in range(20)]
    assert bar_after(losses[done:], losses[:done]).average == bar_after(losses).average


def test_a_loss_that_is_not_finite_leaves_the_average_as_it_was():
    losses = [2.0, math.nan, 1.0, math.inf]
    assert bar_after(losses).average == bar_after([2.0, 1.0]).average
    assert math.isnan(bar_after([math.nan]).average)
