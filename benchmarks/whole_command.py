"""From the shell to a finished adapter, against TRL's SFTTrainer on the same conversations.

    python -m benchmarks.whole_command MODEL DATA --trl PYTHON
    python -m benchmarks.whole_command demo demo --quick       # only see that it works

MODEL is a folder and DATA a data set as `train.py` takes them: SmolLM2-135M-Instruct and real
conversations for the table. PYTHON is that of a virtual environment with trl; without it only this
side runs. Both are whole processes, one after the other. They train on the same conversations in
the same steps, with the same settings, in bfloat16, evaluate before and after on the same held-out
ones, and save the state of training and the adapter. TRL pads and, by default, recomputes
activations; `--no-recompute` has it do without. Then both adapters are judged by one program, on
the held-out conversations, in float32: see benchmarks/judged.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

from benchmarks.conversations import template_for
from benchmarks.processes import ROOT, Measured, measure, model_folder, print_table

HELD_OUT, BATCH, LENGTH = 60, 8, 2048
BOUND = 0.01  # nats by which our held-out loss may be above theirs: their adapter starts elsewhere


def main() -> None:
    """Prints the table."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = model_folder(args.model, place)
        write_data(args, model, place)
        results = {"here": [run(own_command(args, model, place), args, place)]}
        if args.trl:
            results["TRL"] = [run(their_command(args, model, place), args, place)]
        adapters = [place / "ours" / "adapter", place / "theirs"][: len(results)]
        judge = [sys.executable, "-m", "benchmarks.judged", "losses", model, folder]
        losses = json.loads(measure([*judge, *map(str, adapters)], args.threads).out)
    print(f"{args.rows} conversations, {steps(args)} steps, {args.threads} threads")
    print_table(results, "seconds", "cpu", "peak")
    print(f"held-out loss of the model alone {losses[0]:.4f}; " + after(results, losses[1:]))
    assert losses[1] < losses[0], "nothing was learnt"
    assert not args.trl or losses[1] <= losses[2] + BOUND, "TRL's adapter is better"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder of a model, or demo")
    parser.add_argument("data", help="a data set as train.py takes them")
    parser.add_argument("--rows", type=int, default=1000, help="use so many conversations")
    parser.add_argument("--max-steps", type=int, help="stop earlier than after one epoch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", help="the Python of an environment with trl")
    parser.add_argument("--no-recompute", action="store_true", help="TRL keeps all activations")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.max_steps = 200, 3
    return args


def steps(args: argparse.Namespace) -> int:
    """How many optimizer steps both take."""
    return args.max_steps or math.ceil((args.rows - HELD_OUT) / BATCH)


def write_data(args: argparse.Namespace, model: str, place: Path) -> None:
    """Writes what both learn from and are judged on, theirs in the order of our steps."""
    rows = str(place / "rows.parquet")
    program = [sys.executable, "-m"]
    measure([*program, "benchmarks.conversations", args.data, rows, str(args.rows)], 1)
    measure([*program, "benchmarks.judged", "divide", model, str(place), str(HELD_OUT)], 1)


def run(command: list[str], args: argparse.Namespace, place: Path) -> Measured:
    """Runs one side, with caches that are empty."""
    caches = {"XDG_CACHE_HOME": str(place / "cache"), "HF_HOME": str(place / "cache")}
    return measure(command, args.threads, **caches)


def own_command(args: argparse.Namespace, model: str, place: Path) -> list[str]:
    """What our side is started by."""
    data, held_out = str(place / "train.parquet"), str(place / "test.parquet")
    flags = f"--dtype bf16 --batch-size {BATCH} --max-steps {steps(args)} --max-length {LENGTH}"
    flags += f" --eval-size {HELD_OUT} --eval-every {steps(args)} --sample-every 0"
    command = [sys.executable, str(ROOT / "train.py"), "--model", model, *flags.split()]
    return [*command, "--data", data, "--eval-data", held_out, "--output", str(place / "ours")]


def their_command(args: argparse.Namespace, model: str, place: Path) -> list[str]:
    """What TRL's side is started by."""
    settings = template_for(model) | {
        "model": model,
        "data": str(place / "in_order.parquet"),
        "held_out": str(place / "test.parquet"),
        "dtype": "bfloat16",
        "max_length": LENGTH,
        "steps": steps(args),
        "batch_size": BATCH,
        "lr": 2e-4,
        "warmup_steps": 5,
        "grad_clip": 1.0,
        "rank": 16,
        "alpha": 16,
        "seed": 3407,
        "recompute": not args.no_recompute,
        "output": str(place / "trainer"),
        "adapter": str(place / "theirs"),
        "result": str(place / "log.json"),
    }
    (place / "settings.json").write_text(json.dumps(settings))
    program = str(ROOT / "benchmarks" / "trl_sft.py")
    return [args.trl, program, "train", str(place / "settings.json")]


def after(results: dict[str, list[Measured]], losses: list[float]) -> str:
    """Which loss which side ended at."""
    named = zip(results, losses, strict=True)
    return "after training " + ", ".join(f"{name} {loss:.4f}" for name, loss in named)


if __name__ == "__main__":
    main()
