"""Draws a finished run for the README: its loss, beside answers before and after.

Run it as `python -m benchmarks.picture runs/demo-demo docs/demo.svg`.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import matplotlib
from matplotlib import pyplot

BLUE, ORANGE, GREY = "#2f6fab", "#d9822b", "#8a8f98"


def main() -> None:
    """Reads metrics.jsonl and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    lines = (args.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]

    matplotlib.rcParams["svg.hashsalt"] = "the same picture for the same run"
    figure, (curve, talk) = pyplot.subplots(
        1, 2, figsize=(10, 3.6), width_ratios=[1.25, 1], layout="constrained"
    )
    steps = [(r["step"], r["loss"]) for r in records if "loss" in r]
    held_out = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    curve.plot(*zip(*steps, strict=True), color=BLUE, alpha=0.35, linewidth=1, label="each step")
    curve.plot(
        *zip(*held_out, strict=True), color=ORANGE, marker="o", linewidth=2, label="held out"
    )
    curve.set(xlabel="optimizer step", ylabel="loss, nats per target token", yscale="log")
    curve.yaxis.set_major_formatter("{x:g}")
    curve.spines[["top", "right"]].set_visible(False)
    curve.legend(frameon=False)

    talk.axis("off")
    prompts = list(dict.fromkeys(r["prompt"] for r in records if "sample" in r))
    place = 1.0
    for prompt in prompts:
        answers = [r["sample"] for r in records if r.get("prompt") == prompt]
        for text, color, weight in (
            (prompt, "black", "bold"),
            (f"before: {shortened(answers[0])}", GREY, "normal"),
            (f"after: {shortened(answers[-1])}", BLUE, "normal"),
        ):
            wrapped = textwrap.fill(text, 46)
            talk.text(0, place, wrapped, color=color, weight=weight, va="top", fontsize=10.5)
            place -= 0.085 * (wrapped.count("\n") + 1) + 0.02
        place -= 0.06
    figure.savefig(args.picture, metadata={"Date": None} if args.picture.suffix == ".svg" else None)


def shortened(answer: str) -> str:
    """The beginning of an answer that goes on for long."""
    return textwrap.shorten(answer, 100, placeholder=" ...")


if __name__ == "__main__":
    main()
