"""The learning rate: a pure function of the step, so that nothing about it has to be saved."""

from __future__ import annotations

import math

from lora.train_config import TrainConfig


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate for step `step` of `steps`, counted from 0.

    It rises in a line over the warm-up steps, the first of which is not wasted on a rate of 0. Then
    it falls from the peak to `min_lr_ratio` times the peak: along half a cosine (Loshchilov &
    Hutter, arXiv:1608.03983, equation 5, without restarts), in a line, or not at all.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * min(done, 1.0))),
        "linear": 1 - min(done, 1.0),
        "constant": 1.0,
    }[config.schedule]
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
