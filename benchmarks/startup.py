"""From the shell to the first token of an answer, against the same with transformers + peft.

    python -m benchmarks.startup MODEL           # a folder, SmolLM2-135M-Instruct for the table
    python -m benchmarks.startup demo --quick    # only see that it works

First both answer in float32, and must say the same. Then each is started anew in turns, with an
adapter that is not merged, for one token; printed are medians of the time until it appears, of the
processor's seconds, of the peak of memory, and of the memory that is no file's when it appears.
The last row is the time for a Python that only imports PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import ROOT, in_turns, measure, model_folder, print_table

PROMPT = "What is the capital of France?"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder of a model, or demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as place:
        model = model_folder(args.model, Path(place))
        adapter = trained_adapter(model, Path(place))
        answers = {
            side: measure(command, args.threads).out.strip()
            for side, command in commands(model, adapter, "fp32", 24).items()
        }
        said = list(answers.values())
        assert said[0] and said[0] == said[1], answers
        print(f"both say: {' '.join(said[0].split())}")
        sides = commands(model, adapter, "bf16", 1)
        sides["only import torch"] = [sys.executable, "-c", "import torch; print(1)"]
        results = in_turns(sides, rounds, args.threads)
    print(f"{args.model}, {args.threads} threads, medians of {rounds}")
    print_table(results, "first", "cpu", "peak", "anonymous")


def trained_adapter(model: str, place: Path) -> Path:
    """An adapter that one step has trained."""
    flags = "--data demo --max-steps 1 --batch-size 2 --eval-size 0 --sample-every 0".split()
    command = [sys.executable, str(ROOT / "train.py"), "--model", model, *flags]
    measure([*command, "--output", str(place / "run")], threads=2, XDG_CACHE_HOME=str(place))
    return place / "run" / "adapter"


def commands(model: str, adapter: Path, dtype: str, tokens: int) -> dict[str, list[str]]:
    """What either side is started by."""
    own = [sys.executable, str(ROOT / "chat.py"), "ask", PROMPT, "--model", model]
    own += ["--adapter", str(adapter), "--dtype", dtype, "--temperature", "0"]
    peer = [sys.executable, str(ROOT / "benchmarks" / "peer_chat.py"), PROMPT, model]
    return {
        "here": [*own, "--max-new-tokens", str(tokens)],
        "transformers + peft": [*peer, str(adapter), DTYPES[dtype], str(tokens)],
    }


if __name__ == "__main__":
    main()
