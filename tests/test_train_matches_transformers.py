"""Twenty steps of training with real weights, against transformers and PEFT.

SmolLM2-135M-Instruct and eight real conversations, as this project trains: packed into several
micro-batches of different sizes. And as transformers does it: one batch, padded, with its own loss,
its own cosine schedule, and PEFT's layers. Float32. Takes several minutes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import randomise_adapter

import train
from lora.adapter import PREFIX, adapter_tensors
from lora.config import ATTENTION
from run import Run, prepare

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, about themselves
STEPS, LEARNING_RATE = 20, 2e-4


@pytest.fixture(scope="module")
def folder(assets: Path) -> Path:
    return assets / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def run(assets: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as `train.py` prepares it, with an adapter whose B is not zero."""
    place = tmp_path_factory.mktemp("run")
    file = pq.ParquetFile(assets / "data" / "train-00000-of-00001.parquet")
    rows = next(file.iter_batches(6000, columns=["conversations"])).to_pydict()["conversations"]
    rows.sort(key=lambda row: sum(len(turn["value"]) for turn in row))
    chosen = []
    for turns, count in ((2, 1), (4, 4), (6, 2), (8, 1)):
        chosen += [row for row in rows if len(row) == turns][:count]
    (place / "rows.jsonl").write_text(
        "".join(json.dumps({"conversations": row}) + "\n" for row in chosen)
    )
    given: dict[str, Any] = {
        "model": str(folder),
        "data": (str(place / "rows.jsonl"),),
        "output": str(place / "run"),
        "device": "cpu",
        "dtype": "fp32",
        "lr": LEARNING_RATE,
        "lora_targets": ("attention",),
        "warmup_steps": 0,
        "max_steps": STEPS,
        "max_length": 144,
        "micro_batch_tokens": 200,
        "batch_size": 8,
        "eval_size": 0,
        "weight_decay": 0.1,
        "checkpoint_activations": "off",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        run = prepare(given)
    randomise_adapter(run.model, std=0.05)
    return run


def padded(run: Run) -> dict[str, Tensor]:
    """All conversations of a run as one batch, padded on the right, with transformers' labels."""
    data = run.data.train
    rows = [data[number] for number in range(len(data))]
    shape = len(rows), max(len(row.tokens) for row in rows)
    tokens, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, -100)
    for b, row in enumerate(rows):
        n = len(row.tokens)
        tokens[b, :n], mask[b, :n] = torch.tensor(row.tokens.astype("int64")), 1
        is_target = torch.tensor(row.is_target)
        labels[b, :n] = torch.where(is_target, tokens[b, :n], -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def their_model(folder: Path, run: Run) -> nn.Module:
    """PEFT's model with the adapter that the run has now."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=run.config.lora_rank,
        lora_alpha=run.config.lora_alpha,
        target_modules=list(ATTENTION),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, settings)
    ours = adapter_tensors(run.model)
    with torch.no_grad():
        for name, weight in their_adapter(model).items():
            weight.copy_(ours[name])
    return model.train()


def their_adapter(model: nn.Module) -> dict[str, Tensor]:
    """PEFT's trained weights, under the names of an adapter file."""
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith(PREFIX) for name in named)
    return named


def their_training(model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
    """The loss of each step."""
    weights = list(their_adapter(model).values())
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.1)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 0, STEPS)
    losses = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_twenty_steps_give_their_losses_and_their_adapter(folder: Path, run: Run):
    """Bounds: 1e-4 of each loss, and 1e-4 of each matrix' norm.

    Not of each single number: where a gradient is nothing but rounding, AdamW makes a whole step of
    its sign, in either direction.
    """
    lengths = run.data.train.lengths
    assert len(lengths) == 8 and lengths.max() >= 2 * lengths.min(), lengths
    assert len(train.micro_batches(run, run.data.train, range(8))) >= 3
    reference, batch = their_model(folder, run), padded(run)
    start = {name: tensor.clone() for name, tensor in adapter_tensors(run.model).items()}

    losses = [train.train_step(run, step).loss for step in range(STEPS)]
    wanted = their_training(reference, batch)
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert wanted[-1] < 0.8 * wanted[0]  # or nothing was learnt that could differ
    theirs = {name: p.detach() for name, p in their_adapter(reference).items()}
    ours = adapter_tensors(run.model)
    errors = {n: ((got - theirs[n]).norm() / theirs[n].norm()).item() for n, got in ours.items()}
    worst = max(abs(a / b - 1) for a, b in zip(losses, wanted, strict=True))
    print(f"losses within {worst:.1e}, matrices within {max(errors.values()):.1e}")
    for name, got in ours.items():
        assert (got - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
        assert (got - start[name]).norm() >= 0.01 * start[name].norm(), name
