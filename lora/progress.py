"""What a run says of itself on the terminal: its plan, its progress, its summary."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

DAY = 24 * 3600
SECONDS_BETWEEN_LINES = 60
SMOOTHING = 0.9  # the share that the average loss so far has in the next one
BAR = "{bar} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"  # all in 80 columns


def plan(numbers: Mapping[str, Any]) -> str:
    """What a run is about to do, before it starts. The names of the numbers say what they are."""
    n = numbers
    return (
        f"{n['model']} ({n['dtype']} on {n['device']}): {n['trained']:,} of {n['parameters']:,} "
        f"parameters are trained ({n['trained'] / n['parameters']:.2%})\n"
        f"{n['data']}: {n['conversations']:,} conversations, {n['tokens']:,} tokens, "
        f"{n['targets'] / n['tokens']:.0%} of them targets; {n['held_out']:,} held out\n"
        f"{n['steps']:,} steps of {n['batch_size']} conversations, about "
        f"{n['tokens'] * n['batch_size'] / n['conversations']:,.0f} tokens each, at most "
        f"{n['micro_batch_tokens']:,} at once on {n['processes']} "
        f"device{'s' if n['processes'] > 1 else ''}; memory about {gigabytes(n['memory'])}, and "
        "what the program takes\n"
        f"everything goes to {n['folder']}"
    )


class Step(NamedTuple):
    """What came of one optimizer step; `loss` is the mean over its target tokens, in nats."""

    loss: float
    grad_norm: float
    tokens: int
    target_tokens: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether it changed the weights, which it does not if a gradient is NaN or inf."""
        return math.isfinite(self.grad_norm)

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class StepBar:
    """A progress bar over optimizer steps, with what one looks for while waiting.

    Args:
        steps: of the whole run.
        done: of these, so far.
        losses: of those, as far as they were finite.
        shown: False for a process that keeps quiet.
    """

    def __init__(self, steps: int, done: int, losses: Sequence[float], shown: bool) -> None:
        self.bar = tqdm(total=steps, initial=done, bar_format=BAR, disable=None if shown else True)
        self.average = math.nan
        for loss in losses:
            self.take(loss)
        self.steps, self.done, self.shown = steps, done, shown
        self.shown_last = time.monotonic()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()

    def take(self, loss: float) -> None:
        """Lets one more loss into the average, unless it is not finite."""
        if math.isfinite(loss):
            before = loss if math.isnan(self.average) else self.average
            self.average = SMOOTHING * before + (1 - SMOOTHING) * loss

    def update(self, step: Step, lr: float, trouble: str) -> None:
        """Shows one more step, and before its numbers what is wrong, if anything is."""
        self.take(step.loss)
        text = f"{trouble}, " if trouble else ""
        text += f"loss {step.loss:.3f}, avg {self.average:.3f}, lr {lr:.1e}"
        text += f", {step.speed:,.0f} tokens/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        self.done += 1
        # Into a file, where a bar would be one endless line, goes a line now and then.
        is_due = time.monotonic() - self.shown_last > SECONDS_BETWEEN_LINES
        if self.shown and self.bar.disable and is_due:
            print(f"step {self.done} of {self.steps}: {text}", flush=True)
            self.shown_last = time.monotonic()


def in_words(record: Mapping[str, Any]) -> str:
    """What an evaluation or an answer that is logged says."""
    if "eval_loss" in record:
        return f"held-out loss {record['eval_loss']:.4f}"
    return f"{record['prompt']} -> {record['sample']}"


def time_left(seconds: float, device: str, measured_on: str) -> str:
    """How long the rest will take; with what would be faster where that is days."""
    text = f"about {duration(seconds)} left on this {device}, by {measured_on}"
    if seconds < DAY:
        return text
    return f"{text}: a GPU is faster by far, --max-steps shortens it, and --demo takes a minute"


def summary(
    records: Sequence[Mapping[str, Any]], seconds: float, peak: int, adapter: Path, model: str
) -> str:
    """What came of a run, from its metrics."""
    losses = held_out_losses(records)
    lines = []
    if len(losses) > 1:
        lines.append(f"held-out loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
    lines.append(f"{duration(seconds)}, at most {gigabytes(peak)} of memory")
    lines.append(f"the adapter is in {adapter}; chat with it:")
    names = f"--model {shlex.quote(model)} --adapter {shlex.quote(str(adapter))}"
    lines.append(f'    python chat.py ask "Hello!" {names}')
    return "\n".join(lines)


def held_out_losses(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """The loss of each evaluation, in nats per target token."""
    return [record["eval_loss"] for record in records if "eval_loss" in record]


def gigabytes(size: float) -> str:
    """A size in bytes, for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    units = (("d", DAY), ("h", 3600), ("min", 60), ("s", 1))
    whole = max(1, round(seconds))
    parts: list[str] = []
    for name, size in units:
        if whole >= size or parts:
            parts.append(f"{whole // size} {name}")
            whole %= size
    return " ".join(parts[:2])
