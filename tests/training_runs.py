"""Small training runs: in memory for what a step computes, on disk for what `train.main` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from conftest import tiny_llama
from model_folders import single
from texts import write_small_llama3_tokenizer
from token_data import random_rows, write_jsonl
from torch import Tensor, nn

from data.batches import Mixture
from data.dataset import Example
from data.report import DataReport
from data.training_data import Selection, TrainingData
from lora.backup import Backup
from lora.checkpoint import trainable
from lora.config import BaseModel, LoRAConfig
from lora.inject import add_lora, lora_layers
from lora.run_folder import RunFolder
from lora.train_config import TrainConfig
from model.llama import Llama
from model.world import World
from run import Run

LENGTHS = [3, 50, 7, 21, 2, 34, 5, 13]  # spread over more than a factor of ten


def examples(
    lengths: Sequence[int] = LENGTHS, seed: int = 0, vocab_size: int = 211
) -> list[Example]:
    """Conversations of random tokens in which stretches are to be learnt, the last one's too."""
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        is_target = np.repeat(rng.random(length) < 0.5, 3)[:length]
        is_target[0], is_target[-1] = False, True
        made.append(Example(rng.integers(vocab_size, size=length).astype("<u4"), is_target))
    return made


class Listed:
    """Examples in memory, as a source of a `Selection`."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)
        self.lengths = np.array([len(e.tokens) for e in examples], np.int64)
        self.target_counts = np.array([e.is_target[1:].sum() for e in examples], np.int64)
        self.digests = np.arange(len(examples), dtype=np.uint64)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def selection(examples: Sequence[Example]) -> Selection:
    return Selection([(Listed(examples), np.arange(len(examples)))])


def adapted(
    seed: int = 1, dropout: float = 0.0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Llama:
    """`tiny_llama` with a random adapter on all seven projections, B not zero, all of one dtype."""
    model = tiny_llama(**changes)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    add_lora(model, LoRAConfig(4, 6.0, dropout, targets))
    randomise_adapter(model, seed)
    return model.to(dtype).train()


def randomise_adapter(model: nn.Module, seed: int = 1, std: float = 0.1) -> None:
    """Random A and B, the latter not zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        for matrix in (layer.lora_A, layer.lora_B):
            nn.init.normal_(matrix.weight, std=std, generator=generator)


def run_in_memory(
    model: Llama,
    train: Sequence[Example],
    held_out: Sequence[Example] = (),
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Run:
    """A run of a model that has an adapter, with nothing on disk."""
    settings = {"batch_size": len(train), "micro_batch_tokens": 64, "grad_clip": 1e9} | settings
    world = World("cpu")
    world.device = torch.device(device)
    data = TrainingData(
        selection(train), selection(held_out), Mixture((len(train),)), [DataReport("x", None)]
    )
    return Run(
        config=TrainConfig(**settings),
        folder=RunFolder(Path("nowhere"), writes=False),
        backup=Backup(None),
        world=world,
        tokenizer=SimpleNamespace(),
        data=data,
        prompts=[],
        model=model,
        base=BaseModel(None, None, None),
        settings_sha256="",
        stop_ids=frozenset({2}),
        optimizer=torch.optim.AdamW([p for _, p in trainable(model)], lr=1e-3),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


def run_on_disk(folder: Path, rows: int = 24, **flags: Any) -> dict[str, Any]:
    """Writes a small model and conversations; returns flags for `train.main` to train on them."""
    model, data = folder / "model", folder / "rows.jsonl"
    write_small_llama3_tokenizer(model)
    weights = {n: p.detach() for n, p in tiny_llama(vocab_size=400).named_parameters()}
    single(model, weights, vocab_size=400)
    write_jsonl(data, random_rows(rows))
    return {
        "model": str(model),
        "data": (str(data),),
        "output": str(folder / "run"),
        "device": "cpu",
        "dtype": "fp32",
        "lr": 1e-2,
        "batch_size": 4,
        "max_length": 250,
        "micro_batch_tokens": 600,
        "warmup_steps": 2,
        "eval_size": 0,
        "eval_every": 0,
        "sample_every": 0,
        "sample_prompts": ("Hi",),
    } | flags


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained weights' gradients, by name."""
    return {name: p.grad.clone() for name, p in trainable(model)}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained weights, by name."""
    return {name: p.detach().clone() for name, p in trainable(model)}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its own largest value in `b`."""
    assert a.keys() == b.keys()
    return max(((a[n] - b[n]).abs().max() / b[n].abs().max()).item() for n in b)
