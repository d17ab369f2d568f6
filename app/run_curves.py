"""Runs on disk as tables to look at: curves over steps, answers on the way, flags that differ.

Nothing here knows of a page. What is wrong with a run's files is said in `RunCurves.problems`, and
the rest of the run can be looked at all the same.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from app.safe_markdown import printable
from lora.choose_run import runs_in, written_last
from lora.run_folder import CONFIG, DATA, METRICS, RunFolder
from lora.train_config import TrainConfig

MOST_POINTS = 1000  # of a curve: more than a screen shows
STILL_TRAINING = 60  # seconds without a new record
MEASURED = ("loss", "lr", "grad_norm", "tokens", "target_tokens", "tokens_per_second", "seconds")
SAYS_NOTHING = {"output", "resume"}  # flags that cannot make one run better than another


@dataclass(frozen=True)
class RunCurves:
    """A run, small enough to keep, however long it was.

    Attributes:
        name: its folder's, as text that can be shown.
        steps: at most `MOST_POINTS` rows of step, tokens, seconds (these two summed from the
            start), loss, smoothed (nats per target token), lr, grad_norm, tokens_per_second.
        evaluations: rows of step, tokens, seconds, held_out (nats per target token).
        samples: rows of prompt, step, answer.
        config: what config.json says.
        steps_done: the number of the last step.
        steps_planned: how many it was to take; None if that is not known.
        steps_left_out: how many changed nothing, as their gradient was not finite.
        speed: the median of its steps' tokens a second; NaN without steps.
        is_finished: whether its adapter is there.
        problems: what is wrong with its files, a sentence each.
    """

    name: str
    steps: pd.DataFrame
    evaluations: pd.DataFrame
    samples: pd.DataFrame
    config: Mapping[str, Any]
    steps_done: int
    steps_planned: int | None
    steps_left_out: int
    speed: float
    is_finished: bool
    problems: tuple[str, ...]


def list_runs(folder: Path) -> dict[str, Path]:
    """The runs in a folder by name, the one that was written last first; none if there is none."""
    return {printable(path.name): path for path in runs_in(folder)}


def age(folder: Path) -> float:
    """Seconds since a run last wrote something; those since 1970 if it is gone."""
    return time.time() - written_last(folder)


def is_training(folder: Path) -> bool:
    """Whether a run is likely to go on at this moment: it wrote just now, and no adapter yet."""
    return age(folder) < STILL_TRAINING and not (folder / "adapter").is_dir()


def version(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes whenever one of a run's files does, found out without reading them."""
    found = []
    for name in (CONFIG, METRICS, DATA, "adapter"):
        try:
            stat = (folder / name).stat()
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def read_run(folder: Path, window: int) -> RunCurves:
    """Reads a run; its loss is smoothed over about `window` steps."""
    problems: list[str] = []
    records: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    if not folder.is_dir():
        problems.append("Its folder is gone.")
    try:
        found = RunFolder(folder, writes=False).records()
        records = [record for record in found if math.isfinite(number(record["step"]))]
    except OSError as error:
        problems.append(f"Its {METRICS} cannot be read: {error.strerror}.")
    try:
        config = RunFolder(folder, writes=False).saved_config()
    except ValueError:
        problems.append(f"Its {CONFIG} is damaged, so its flags are not known.")
    taken = [record for record in records if "loss" in record]
    columns = {name: np.array([number(r.get(name)) for r in taken]) for name in MEASURED}
    columns["step"] = np.array([number(record["step"]) for record in taken])
    curve = step_curve(columns, window)
    speeds = columns["tokens_per_second"][np.isfinite(columns["tokens_per_second"])]
    return RunCurves(
        name=printable(folder.name),
        steps=downsampled(curve),
        evaluations=evaluation_curve(records, curve),
        samples=sample_table(records),
        config=config,
        steps_done=int(columns["step"][-1]) if taken else 0,
        steps_planned=planned_steps(config, taken),
        steps_left_out=sum(record["loss"] is None for record in taken),
        speed=float(np.median(speeds)) if len(speeds) else math.nan,
        is_finished=(folder / "adapter").is_dir(),
        problems=tuple(problems),
    )


def number(value: object) -> float:
    """A finite number out of a file; NaN for whatever else stands there."""
    is_number = isinstance(value, int | float) and abs(value) < 1e300
    return float(value) if is_number else math.nan  # type: ignore[arg-type]


# --- curves ---------------------------------------------------------------------------------------


def step_curve(columns: Mapping[str, np.ndarray], window: int) -> pd.DataFrame:
    """The columns with the loss smoothed, and tokens and seconds summed from the start."""
    curve = pd.DataFrame(dict(columns))
    curve["smoothed"] = smoothed(columns["loss"], columns["target_tokens"], window)
    curve["step_tokens"], curve["step_seconds"] = curve["tokens"], curve["seconds"]
    curve["tokens"] = curve["tokens"].fillna(0).cumsum()
    curve["seconds"] = curve["seconds"].fillna(0).cumsum()
    return curve


def smoothed(losses: np.ndarray, weights: np.ndarray, window: int) -> np.ndarray:
    """The mean loss per target token of about the last `window` steps, for each step.

    It is one exponential mean over another: of the steps' summed losses over that of their target
    tokens, both fading by 1 - 1 / window a step. So a step counts by what was learnt from in it,
    the first steps are right too, and a loss that never changes stays what it is.

    Args:
        losses: of the steps, in nats per target token; NaN for a step that was left out.
        weights: their target tokens.
        window: in steps; 1 smoothes nothing.
    """
    fade, total, weight = 1 - 1 / window, 0.0, 0.0
    means = np.full(len(losses), math.nan)
    for place, (loss, count) in enumerate(zip(losses.tolist(), weights.tolist(), strict=True)):
        total, weight = total * fade, weight * fade
        if math.isfinite(loss) and count > 0:
            total, weight = total + loss * count, weight + count
        if weight > 0:
            means[place] = total / weight
    return means


def downsampled(curve: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """At most `most` rows, each of them equally many steps but for the last.

    Where a row is, and the smoothed loss, are as after its last step. Its loss is the mean over its
    target tokens, its speed that over its seconds, and the others are plain means.
    """
    size = max(1, math.ceil(len(curve) / most))
    row = np.arange(len(curve)) // size
    by_row = curve.groupby(row)
    points = by_row[["step", "tokens", "seconds", "smoothed"]].last()
    counted = curve["target_tokens"].where(curve["loss"].notna())
    weighted = (curve["loss"] * counted).groupby(row).sum(min_count=1)
    points["loss"] = weighted / counted.groupby(row).sum(min_count=1)
    points[["lr", "grad_norm"]] = by_row[["lr", "grad_norm"]].mean()
    sums = by_row[["step_tokens", "step_seconds"]].sum()
    points["tokens_per_second"] = sums["step_tokens"] / sums["step_seconds"].where(lambda s: s > 0)
    return points.replace([math.inf, -math.inf], math.nan)


def evaluation_curve(records: Sequence[Mapping[str, Any]], curve: pd.DataFrame) -> pd.DataFrame:
    """The held-out losses, and how many tokens and seconds of training came before each."""
    points = [(r["step"], number(r["eval_loss"])) for r in records if "eval_loss" in r]
    table = pd.DataFrame(points, columns=["step", "held_out"], dtype=float).dropna()
    before = np.searchsorted(curve["step"], table["step"], side="right")
    for name in ("tokens", "seconds"):
        table[name] = np.concatenate([[0.0], curve[name]])[before]
    return table


def planned_steps(config: Mapping[str, Any], taken: Sequence[Mapping[str, Any]]) -> int | None:
    """How many steps a run was to take, by its flags and by how far a step got in an epoch."""
    most, epochs = number(config.get("max_steps")), number(config.get("epochs"))
    if math.isfinite(most):
        return int(most)
    last = taken[-1] if taken else {}
    epoch = number(last.get("epoch"))
    in_epoch = last["step"] / epoch if epoch > 0 else math.nan
    steps = epochs * round(in_epoch) if math.isfinite(in_epoch) else math.nan
    return math.ceil(steps) if math.isfinite(steps) else None


# --- answers, flags -------------------------------------------------------------------------------


def sample_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What the model answered to each prompt, and when."""
    rows = [
        (printable(record.get("prompt", "")), record["step"], printable(record["sample"]))
        for record in records
        if "sample" in record
    ]
    return pd.DataFrame(rows, columns=["prompt", "step", "answer"])


def answers_to(prompt: str, runs: Sequence[RunCurves]) -> pd.DataFrame:
    """Rows of run, step, answer, in the order of the steps."""
    tables = [
        run.samples[run.samples["prompt"] == prompt].assign(run=run.name)[["run", "step", "answer"]]
        for run in runs
    ]
    return pd.concat(tables).sort_values("step", kind="stable", ignore_index=True)


def flags_that_differ(runs: Sequence[RunCurves]) -> pd.DataFrame:
    """A row for each flag in which the runs differ, with a column for each run.

    A run whose flags are not known has no column.
    """
    known = [run for run in runs if run.config]
    flags = [field.name for field in dataclasses.fields(TrainConfig)]
    rows = {}
    for flag in flags:
        values = [as_typed(run.config.get(flag)) for run in known]
        if flag not in SAYS_NOTHING and len(set(values)) > 1:
            rows[f"--{flag.replace('_', '-')}"] = values
    return pd.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in known])


def as_typed(value: object) -> str:
    """A flag's value about as it stands on a command line."""
    if isinstance(value, list):
        return printable(" ".join(map(str, value)))
    words = {None: "–", True: "on", False: "off"}
    return words[value] if value is None or isinstance(value, bool) else printable(value)
