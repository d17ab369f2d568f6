"""The speed of a training step against litgpt, torchtune and TRL, on the same work.

    python -m benchmarks.trainers --litgpt PYTHON --torchtune PYTHON --trl PYTHON [--quick]

Each PYTHON is that of a virtual environment with the trainer; those that are not given are left
out. Four chat conversations of 120 to 1,024 tokens, of which 55 % are targets, padded by the
others; SmolLM2's shape with random weights, bfloat16, LoRA of rank 16 on q, k, v and o. All start
with the same weights, and B at zero. Their losses must agree with ours in every step, while the
learning rate is high enough for the losses to fall. All take steps in turns; printed are medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers import ALPHA, RANK, Setting, Step, examples, ours, padded, random_llama
from lora.inject import lora_layers
from model.llama import Llama

LR = 2e-3
BOUND = 5e-3  # by how much a loss may differ, relative: bfloat16 all through, adapters included
OTHERS = ("litgpt", "torchtune", "trl")
QUIET = {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def main() -> None:
    """Prints the table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    setting = Setting("tiny" if args.quick else "135m", "chat", torch.bfloat16)
    model = random_llama(setting)
    for layer in lora_layers(model).values():
        torch.nn.init.zeros_(layer.lora_B.weight)
    own = Step(model, ours(setting, model).loss)
    own.adam.param_groups[0]["lr"] = LR
    with tempfile.TemporaryDirectory() as folder:
        write_work(setting, model, Path(folder))
        others = {
            name: Other(name, getattr(args, name), folder, args.threads)
            for name in OTHERS
            if getattr(args, name)
        }
        times = in_turns(own, others, args.steps)
        for other in others.values():
            other.process.kill()
    print(f"{setting.shape}, {args.threads} threads, medians of {args.steps} steps")
    print(f"{'':12} {'wall s':>9} {'CPU s':>9} {'times':>7} {'CPU':>7}")
    for name, (wall, cpu) in times.items():
        ratios = wall / times["here"][0], cpu / times["here"][1]
        print(f"{name:12} {wall:9.3f} {cpu:9.3f} {ratios[0]:7.2f} {ratios[1]:7.2f}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in OTHERS:
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"a Python that has {name}")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a tiny shape: only see that it works")
    return parser.parse_args()


class Other:
    """Another trainer in a process of its own."""

    def __init__(self, name: str, python: str, folder: str, threads: int) -> None:
        spec = find_spec("benchmarks.other_trainers")
        assert spec and spec.origin
        self.process = subprocess.Popen(
            [python, spec.origin, name, folder, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | QUIET,
        )
        self.answer()

    def answer(self) -> dict[str, float]:
        """The next line that it tells; raises RuntimeError if it has died."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")

    def step(self) -> dict[str, float]:
        """Has it take a step."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


def write_work(setting: Setting, model: Llama, folder: Path) -> None:
    """Writes the weights, the start of the adapter, and the conversations for the others."""
    tensors = {
        name.replace(".base.", "."): p.detach().contiguous()
        for name, p in model.named_parameters()
        if ".lora_" not in name and name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors")
    a = {
        f"{name.split('.')[2]}.{name.split('.')[-1]}": layer.lora_A.weight.detach()
        for name, layer in lora_layers(model).items()
    }
    save_file(a, folder / "a.safetensors")
    rectangle = padded(examples(setting))
    save_file(
        {
            "tokens": rectangle["input_ids"],
            "labels": rectangle["labels"],
            "lengths": rectangle["attention_mask"].sum(dim=1),
        },
        folder / "work.safetensors",
    )
    config = {k: v for k, v in dataclasses.asdict(setting.config).items() if k != "rope_scaling"}
    config.pop("tie_word_embeddings")
    more = {"rank": RANK, "alpha": ALPHA, "lr": LR}
    (folder / "config.json").write_text(json.dumps(config | more))


def in_turns(own: Step, others: dict[str, Other], count: int) -> dict[str, tuple[float, float]]:
    """Medians of wall and CPU seconds of a step, after one that is not counted.

    Raises:
        AssertionError: if another trainer's loss is not ours.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("here", *others)}
    for number in range(count + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = own()
        took = {"here": (time.perf_counter() - wall, time.process_time() - cpu)}
        print(f"step {number}: loss {loss:.4f} here", end="", flush=True)
        for name, other in others.items():
            answer = other.step()
            took[name] = answer["wall"], answer["cpu"]
            print(f", {answer['loss']:.4f} in {name}", end="", flush=True)
            assert abs(answer["loss"] - loss) < BOUND * loss, (name, answer["loss"], loss)
        print()
        for name in times:
            times[name] += [took[name]] if number else []
    return {
        name: (statistics.median(w for w, _ in both), statistics.median(c for _, c in both))
        for name, both in times.items()
    }


if __name__ == "__main__":
    main()
