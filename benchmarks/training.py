"""The speed and the memory of a training step, against transformers + peft on the same work.

    python -m benchmarks.training chat                 # four conversations, 1B shape, bfloat16
    python -m benchmarks.training full --targets all
    python -m benchmarks.training chat --quick         # only see that it works

Random weights of the real shapes. First both sides' losses and gradients are compared. Then they
take steps in turns, in one process; printed are medians of wall and CPU seconds, and the ratios.
Each side's peak memory is that of a process in which nothing else was done.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.peers import WORKS, Setting, Step, disagreement, ours, random_llama, theirs
from model.device import DTYPES
from model.linear import product
from model.memory import peak_bytes

# What rounding allows in these dtypes: loss, gradient.
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-3, 6e-2)}
SIDES = {
    "here": lambda setting, model: ours(setting, model),
    "padded": lambda setting, model: theirs(setting, model),
    "one by one": lambda setting, model: theirs(setting, model, one_by_one=True),
}


def main() -> None:
    """Prints the table."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting(
        "tiny" if args.quick else args.shape,
        args.work,
        DTYPES[args.dtype],
        args.targets,
        args.layers,
        args.recompute,
        args.micro_batch_tokens,
    )
    if args.side:
        measure_alone(setting, args.side)
        return
    names = ["here", "padded"] + (["one by one"] if args.work == "chat" else [])
    peaks = {name: peak_of(name) for name in names}  # while this process needs no memory yet
    model = random_llama(setting)
    steps = {}
    for name in names[1:]:
        steps[name] = SIDES[name](setting, model)
    steps = {"here": SIDES["here"](setting, model)} | steps
    for name in names[1:]:
        loss, gradient = disagreement(steps["here"], steps[name])
        bound = BOUNDS[setting.dtype]
        assert loss < bound[0] and gradient < bound[1], (name, loss, gradient)
        print(f"here and {name}: losses differ by {loss:.1e}, gradients by {gradient:.1e}")
    times = in_turns(steps, args.steps)
    print(f"{args.work}, {setting.shape}, {args.dtype}, {args.targets}", end="")
    print(f", {torch.get_num_threads()} threads, median of {args.steps} steps")
    print(f"{'':12} {'wall s':>9} {'CPU s':>9} {'times':>7} {'CPU':>7} {'peak GB':>9} {'share':>7}")
    for name in names:
        wall, cpu = times[name]
        print(
            f"{name:12} {wall:9.3f} {cpu:9.3f} {wall / times['here'][0]:7.2f} "
            f"{cpu / times['here'][1]:7.2f} {peaks[name]:9.2f} {peaks['here'] / peaks[name]:7.2f}",
            flush=True,
        )
    if args.work == "full":
        print_utilisation(setting, *times["here"])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", choices=("chat", "full"))
    parser.add_argument("--shape", default="1b", choices=("1b", "135m", "tiny"))
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--targets", default="attention", choices=("attention", "all"))
    parser.add_argument("--layers", type=int, help="only so many")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="at once, of ours")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a tiny shape: only see that it works")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_turns(steps: dict[str, Step], count: int) -> dict[str, tuple[float, float]]:
    """Medians of wall and CPU seconds of a step, after one that is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(count + 1):
        for name, step in steps.items():
            before = time.perf_counter(), time.process_time()
            step()
            if number:
                wall, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
                times[name].append((wall, cpu))
    return {
        name: (statistics.median(w for w, _ in both), statistics.median(c for _, c in both))
        for name, both in times.items()
    }


def print_utilisation(setting: Setting, wall: float, cpu: float) -> None:
    """How much of the processor's matrix products' peak a step over one full sequence reaches.

    Counted are the operations of the forward pass and of the gradient towards the input, of every
    linear layer and of the head at every token, and attention's on and below the diagonal, which
    the backward pass repeats twice. The peak is the best of the layers' own shapes, measured now.
    """
    c, tokens = setting.config, sum(WORKS[setting.work][0])
    heads = (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    per_layer = 2 * c.hidden_size * heads + 3 * c.hidden_size * c.intermediate_size
    weights = c.num_hidden_layers * per_layer + c.vocab_size * c.hidden_size
    attention = 2 * tokens * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    done = tokens * (4 * weights + 3 * attention)
    best = [0.0, 0.0]
    inner, width = c.intermediate_size, c.hidden_size
    for size_in, size_out in ((width, inner), (inner, width), (width, width)):
        x = torch.randn(tokens, size_in).to(setting.dtype)
        weight = torch.randn(size_out, size_in).to(setting.dtype)
        for _ in range(10):
            before = time.perf_counter(), time.process_time()
            product(x, weight)
            took = time.perf_counter() - before[0], time.process_time() - before[1]
            best = [max(b, 2 * x.numel() * size_out / t) for b, t in zip(best, took, strict=True)]
    print(f"matrix products reach {best[0] / 1e9:.0f} GFLOP/s; the step", end=" ")
    print(f"{done / wall / best[0]:.0%} of it by the wall, {done / cpu / best[1]:.0%} by CPU time")


def peak_of(side: str) -> float:
    """The peak memory in GB of a process that takes two steps of this side."""
    again = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--side", side]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_alone(setting: Setting, side: str) -> None:
    """Takes two steps and prints the peak memory of this process, in GB."""
    step = SIDES[side](setting, random_llama(setting))
    step()
    step()
    print(peak_bytes(torch.device("cpu")) / 1e9)


if __name__ == "__main__":
    main()
