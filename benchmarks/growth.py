"""How the speed and the memory of a training step grow with its tokens, and with the rank.

    python -m benchmarks.growth                     # SmolLM2's shape, bfloat16
    python -m benchmarks.growth --quick             # only see that it works

Conversations of 128 tokens, half of them targets, packed into one forward pass. Every line is a
process of its own, so its peak memory is its own: 512 to 8,192 tokens at rank 16, then ranks 8 and
64 at 1,024 tokens. Printed are medians over the steps after one that is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks import peers
from benchmarks.peers import Setting, Step, random_llama
from data.batches import MicroBatch
from data.dataset import Example
from model.memory import peak_bytes
from train import summed_loss

LENGTH = 128
TOKENS = (512, 1024, 2048, 4096, 8192)
RANKS = (8, 64)
AT = 1024  # tokens, where the ranks are compared


def main() -> None:
    """Prints the table."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.tokens:
        measure(args)
        return
    lines = [(tokens, peers.RANK) for tokens in TOKENS] + [(AT, rank) for rank in RANKS]
    print(f"{args.shape}, {torch.get_num_threads()} threads, medians of {args.steps} steps")
    print(f"{'tokens':>8} {'rank':>5} {'wall s':>9} {'CPU s':>9} {'tokens/s':>9} {'peak GB':>8}")
    for tokens, rank in lines[-1:] if args.quick else lines:
        more = ["--tokens", str(tokens), "--rank", str(rank)]
        again = [sys.executable, "-m", "benchmarks.growth", *sys.argv[1:], *more]
        done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, end="", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="135m", choices=("1b", "135m", "tiny"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a tiny shape: only see that it works")
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.shape, args.steps = "tiny", 1
    return args


def measure(args: argparse.Namespace) -> None:
    """Takes the steps of one line, and prints it."""
    peers.RANK = args.rank
    setting = Setting(args.shape, "full", torch.bfloat16)
    step = step_over(setting, args.tokens)
    times = []
    for number in range(args.steps + 1):
        before = time.perf_counter(), time.process_time()
        step()
        if number:
            times.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    peak = peak_bytes(torch.device("cpu")) / 1e9
    speed = args.tokens / wall
    print(f"{args.tokens:8} {args.rank:5} {wall:9.3f} {cpu:9.3f} {speed:9.1f} {peak:8.2f}")


def step_over(setting: Setting, tokens: int) -> Step:
    """A training step over so many tokens of random conversations."""
    rng = np.random.default_rng(0)
    is_target = np.arange(LENGTH) >= LENGTH // 2
    size = setting.config.vocab_size
    conversations = [
        Example(rng.integers(size, size=LENGTH).astype("<u4"), is_target)
        for _ in range(tokens // LENGTH)
    ]
    model, batch = random_llama(setting), MicroBatch.of(conversations)

    def loss() -> float:
        mean = summed_loss(model, batch) / len(batch.targets)
        mean.backward()
        return mean.item()

    return Step(model, loss)


if __name__ == "__main__":
    main()
