"""How fast conversations become tokens with a mask, against TRL's preparation of the same rows.

    python -m benchmarks.tokenising MODEL DATA --trl PYTHON
    python -m benchmarks.tokenising demo demo --quick      # only see that it works

MODEL is a folder and DATA a data set as `train.py` takes them: SmolLM2-135M-Instruct and real
conversations for the table. PYTHON is that of a virtual environment with trl; without it only this
side is measured. The rows are repeated with variants until there are --rows different ones. Both
sides run as whole processes in turns, TRL with as many processes as there are threads. Printed are
medians: of the preparation by itself, and of the whole process its processor seconds and its peak
memory. (TRL's processes below the first are in neither; with --threads 1 there are none.) Then our
second start out of the cache, whole. What came out of both is compared in benchmarks/prepared.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.conversations import template_for
from benchmarks.processes import ROOT, Measured, in_turns, measure, model_folder


def main() -> None:
    """Prints the table."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model, data = model_folder(args.model, place), str(place / "rows.parquet")
        writer = [sys.executable, "-m", "benchmarks.conversations", args.data, data]
        measure([*writer, str(args.rows)], args.threads)
        program = [sys.executable, "-m", "benchmarks.prepared"]
        results: dict[str, list[Measured]] = {"here": [], "TRL": []}
        for number in range(args.rounds):
            here = [*program, "here", model, data, str(place / f"cache-{number}")]
            commands = {"here": [*here, str(place / "here.npz")]}
            if args.trl:
                commands["TRL"] = their_command(args, model, data, place)
            for name, runs in in_turns(commands, 1, args.threads, HF_HOME=folder).items():
                results[name] += runs
        if args.trl:
            compare = [*program, "compare", str(place / "here.npz"), str(place / "theirs.npz")]
            print(measure(compare, args.threads).out.strip())
        again = in_turns({"again": commands["here"]}, args.rounds, args.threads)["again"]
    print(f"{args.rows} rows, {args.threads} threads, medians of {args.rounds}")
    for name, runs in results.items():
        if runs:
            print(line(name, runs, results["here"]))
    whole = statistics.median(run.seconds for run in again)
    inner = statistics.median(json.loads(run.out)["seconds"] for run in again)
    print(f"second start: {inner:.2f} s, with all imports {whole:.2f} s")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder of a model, or demo")
    parser.add_argument("data", help="a data set as train.py takes them")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", help="the Python of an environment with trl")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds = 200, 1
    return args


def their_command(args: argparse.Namespace, model: str, data: str, place: Path) -> list[str]:
    """What TRL's side is started by."""
    settings = template_for(model) | {
        "model": model,
        "data": data,
        "max_length": 2048,
        "processes": args.threads if args.threads > 1 else None,
        "output": str(place / "output"),
        "result": str(place / "theirs.npz"),
    }
    file = place / "settings.json"
    file.write_text(json.dumps(settings))
    return [args.trl, str(ROOT / "benchmarks" / "trl_sft.py"), "prepare", str(file)]


def line(name: str, runs: Sequence[Measured], own: Sequence[Measured]) -> str:
    """Medians of a side, and how many times ours they are."""

    def medians(of: Sequence[Measured]) -> tuple[float, float, float]:
        inner = statistics.median(json.loads(run.out.splitlines()[-1])["seconds"] for run in of)
        cpu, peak = (statistics.median(getattr(run, f) for run in of) for f in ("cpu", "peak"))
        return inner, cpu, peak

    (inner, cpu, peak), (a, b, c) = medians(runs), medians(own)
    return (
        f"{name:6} {inner:7.2f} s ({inner / a:.2f})   whole process: {cpu:7.2f} CPU s "
        f"({cpu / b:.2f}), {peak / 1e6:5.0f} MB ({peak / c:.2f})"
    )


if __name__ == "__main__":
    main()
