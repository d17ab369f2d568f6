"""What copying checkpoints in the background costs the steps that train meanwhile.

    python -m benchmarks.backup [MODEL DATA] [--steps 6] [--quick]

The worst case: a checkpoint is handed over before every step, so that some copy is always being
made. In one process and in turns, steps with and without; both end with the same weights. Prints
the medians of wall and CPU seconds, and their ratios; and, since steps differ by more than a copy
takes, what a copy takes by itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import torch

import train
from lora.backup import Backup
from lora.checkpoint import checkpoint_files
from lora.folder_backup import FolderPlace
from run import Run, prepare, resume


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="demo", help="folder of a model")
    parser.add_argument("data", nargs="?", default="demo", help="file of conversations")
    parser.add_argument("--steps", type=int, default=6, help="of each kind")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    args = parser.parse_args()
    rounds = 2 if args.quick else args.steps
    with tempfile.TemporaryDirectory() as place:
        given = {
            "model": args.model,
            "data": (args.data,),
            "output": f"{place}/run",
            "max_length": 1024,
            "eval_size": 0,
            "eval_every": 0,
            "max_steps": 2 * rounds + 1,
        }
        run = prepare(given)
        resume(run)
        train.train_step(run, 0)
        times: dict[str, list[tuple[float, float]]] = {"warm-up": [], "without": [], "with": []}
        backup = Backup(FolderPlace(Path(place) / "backup"))
        for number in range(rounds):
            weights = [p.detach().clone() for p in trained(run)]
            optimizer = deepcopy(run.optimizer.state_dict())
            results = []
            order = ["without", "with"] if number % 2 else ["with", "without"]
            for kind in ["warm-up", *order]:  # what follows from a step's shapes is set up once
                restore(run, weights, optimizer)
                if kind == "with":
                    copy(run, backup, number + 1)
                before = time.perf_counter(), time.process_time()
                train.train_step(run, number + 1)
                after = time.perf_counter(), time.process_time()
                times[kind].append((after[0] - before[0], after[1] - before[1]))
                results.append([p.detach().clone() for p in trained(run)])
            for other in results[1:]:
                assert all(map(torch.equal, results[0], other))
            assert backup.finish(lambda: False) == ""
        size = sum(f.stat().st_size for f in (Path(place) / "backup").rglob("*") if f.is_file())
        report(times, size / 2)
        alone = [seconds_of_copy(run, backup, number) for number in range(5)]
        wall, cpu = (statistics.median(column) for column in zip(*alone, strict=True))
        print(f"a copy   {wall:8.3f} s,        {cpu:8.3f} s of CPU (median of {len(alone)})")


def trained(run: Run) -> list[torch.Tensor]:
    """The weights that training changes."""
    return [p for group in run.optimizer.param_groups for p in group["params"]]


def restore(run: Run, weights: list[torch.Tensor], optimizer: dict) -> None:
    """Puts copies of the weights and of the optimizer's state back."""
    with torch.no_grad():
        for p, weight in zip(trained(run), weights, strict=True):
            p.copy_(weight)
    run.optimizer.load_state_dict(deepcopy(optimizer))


def seconds_of_copy(run: Run, backup: Backup, number: int) -> tuple[float, float]:
    """Wall and CPU seconds of one copy while nothing else happens."""
    before = time.perf_counter(), time.process_time()
    copy(run, backup, 1000 + number)
    assert backup.finish(lambda: False) == ""
    return time.perf_counter() - before[0], time.process_time() - before[1]


def copy(run: Run, backup: Backup, step: int) -> None:
    """Hands a checkpoint over."""
    files = checkpoint_files(step, run.model, run.config.lora, run.base, run.optimizer, run.scaler)
    backup.copy(step, files | run.folder.own_files())


def report(times: dict[str, list[tuple[float, float]]], size: float) -> None:
    """Prints the medians."""
    print(f"a copy has {size / 1e6:.1f} MB")
    medians = {}
    for kind in ("without", "with"):
        measured = times[kind]
        medians[kind] = [statistics.median(column) for column in zip(*measured, strict=True)]
        wall, cpu = medians[kind]
        print(f"{kind:8} {wall:8.3f} s a step, {cpu:8.3f} s of CPU (median of {len(measured)})")
    ratios = [a / b for a, b in zip(medians["with"], medians["without"], strict=True)]
    print(f"ratio    {ratios[0]:8.3f}          {ratios[1]:8.3f}")


if __name__ == "__main__":
    main()
