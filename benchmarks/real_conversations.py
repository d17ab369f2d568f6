"""Trains on real conversations twice: here, and with transformers and peft on the same steps.

    python -m benchmarks.real_conversations MODEL DATA [--rows 1000] [--max-steps 60]

Both start from the same adapter, see the same conversations in each step, and have the same
learning rates, so their held-out losses should agree to a few digits. Theirs pads each step's
conversations to the longest, as its users do. Times are of one run on one machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM

import train
from data.batches import conversations_of_step
from data.training_data import Selection
from lora.progress import held_out_losses
from lora.schedule import learning_rate
from model.device import DTYPES
from run import Run, prepare, resume


def main() -> None:
    """Prints held-out losses before and after, and how long the steps took, of both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("data", type=Path, help="parquet file of conversations")
    parser.add_argument("--rows", type=int, default=1000, help="use the first so many")
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--max-length", type=int, default=1024)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "first.parquet"
        pq.write_table(pq.read_table(args.data).slice(0, args.rows), data)
        given = {
            "model": str(args.model),
            "data": (str(data),),
            "lr": 2e-4,
            "max_steps": args.max_steps,
            "max_length": args.max_length,
            "eval_size": 60,
            "eval_every": args.max_steps,
            "sample_every": 0,
        }
        start = Path(folder) / "start"
        train.main(given | {"max_steps": 0, "output": str(start)})
        train.main(given | {"output": f"{folder}/ours"})
        run = prepare(given | {"output": f"{folder}/ours", "resume": True})
        resume(run)
        records = run.folder.records()
        before, after = held_out_losses(records)
        seconds = sum(r["seconds"] for r in records if "seconds" in r)
        print(f"here: held-out {before:.4f} -> {after:.4f}, steps took {seconds:.0f} s", flush=True)
        their_before, their_after, their_seconds = theirs(args.model, start / "adapter", run)
        print(
            f"transformers + peft: held-out {their_before:.4f} -> {their_after:.4f}, "
            f"steps took {their_seconds:.0f} s ({their_seconds / seconds:.2f} times as long)"
        )


def theirs(folder: Path, adapter: Path, run: Run) -> tuple[float, float, float]:
    """Held-out loss before and after, and the seconds that the steps took."""
    config, data = run.config, run.data
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[config.dtype])
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, betas=(config.beta1, config.beta2), weight_decay=0.0)
    everything = list(range(len(data.held_out)))
    before = held_out_loss(model, data.held_out, everything)
    started = time.perf_counter()
    for step in range(run.steps):
        numbers = conversations_of_step(data.mixture, config.batch_size, config.seed, step)
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, run.steps, config)
        loss, count = padded_loss(model, data.train, numbers)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(weights, config.grad_clip)
        adam.step()
        adam.zero_grad()
    seconds = time.perf_counter() - started
    return before, held_out_loss(model, data.held_out, everything), seconds


def padded_loss(
    model: torch.nn.Module, conversations: Selection, numbers: list[int]
) -> tuple[torch.Tensor, int]:
    """Summed loss over the targets of one padded batch, and how many there are."""
    examples = [conversations[number] for number in numbers]
    longest = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask, labels = tokens.clone(), torch.full_like(tokens, -100)
    for row, example in enumerate(examples):
        ids = torch.from_numpy(example.tokens.astype("int64"))
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        is_target = torch.from_numpy(example.is_target.copy())
        labels[row, : len(ids)] = torch.where(is_target, ids, -100)
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
    loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return loss, int((labels[:, 1:] != -100).sum())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, held_out: Selection, numbers: list[int]) -> float:
    """Mean over all target tokens, in nats."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(numbers), 4):
        loss, targets = padded_loss(model, held_out, numbers[start : start + 4])
        total, count = total + loss.item(), count + targets
    model.train()
    return total / count


if __name__ == "__main__":
    main()
