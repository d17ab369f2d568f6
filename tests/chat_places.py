"""A model with two adapters in a run's folder, and engines that answer with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small_runs import write_small_model

from app.engine import Engine, Request
from app.model_files import ModelFiles, open_model
from data.chat_format import Message
from lora.adapter import save_adapter
from lora.config import BaseModel, LoRAConfig
from lora.inject import add_lora, lora_layers
from model.generation_config import SamplingConfig
from model.weights import load_model, weights_sha256

GREEDY = SamplingConfig()


@dataclass(frozen=True)
class Place:
    """A folder with `model`, and `runs/one` and `runs/two`, each with an adapter for it."""

    folder: Path
    files: ModelFiles

    def adapter(self, name: str | None) -> Path | None:
        """The adapter of a run; None for none."""
        return None if name is None else self.folder / "runs" / name / "adapter"


@pytest.fixture(scope="module")
def chat_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The place; tests must leave it as it is."""
    return make_place(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def own_place(tmp_path: Path) -> Place:
    """A place to spoil."""
    return make_place(tmp_path)


def make_place(folder: Path) -> Place:
    """Writes model and runs."""
    model = write_small_model(folder / "model")
    for seed, name in enumerate(("one", "two")):
        write_adapter(model, folder / "runs" / name / "adapter", seed)
        config = {"model": str(model), "model_revision": None, "lr": 1e-4 * (seed + 1)}
        (folder / "runs" / name / "config.json").write_text(json.dumps(config))
    return Place(folder, open_model(str(model)))


def write_adapter(model: Path, folder: Path, seed: int) -> None:
    """An adapter that changes every answer."""
    adapted, config = load_model(model, torch.float32), LoRAConfig(rank=3)
    add_lora(adapted, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(adapted).values():
            for matrix in (layer.lora_A, layer.lora_B):
                matrix.weight.normal_(0, 0.3, generator=generator)
    save_adapter(adapted, config, BaseModel("model", None, weights_sha256(model)), folder)


def request(
    place: Place,
    texts: str | Sequence[str],
    adapter: str | None = None,
    conversation: str | None = None,
    length: int = 12,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
) -> Request:
    """A request for the answer to the last of the texts, said by user and assistant in turns."""
    texts = [texts] if isinstance(texts, str) else texts
    roles = ["user", "assistant"] * len(texts)
    messages = [Message(role, text) for role, text in zip(roles, texts, strict=False)]
    ids = place.files.chat_format.render(messages, generation_prompt=True).ids
    return Request(place.files, place.adapter(adapter), ids, sampling, seed, length, conversation)


def answers(
    engine: Engine, *requests: Request, tell: Callable[[str], None] = lambda what: None
) -> list[str]:
    """The whole answers to requests that belong together."""
    texts = [""] * len(requests)
    for written in engine.answer(requests, tell):
        texts[written.which] += written.text
    return texts


def new_engine() -> Engine:
    """An engine that computes exactly alike on every machine."""
    return Engine("cpu", "fp32")


def alone(*requests: Request) -> list[str]:
    """The answers of an engine that nobody else uses."""
    return answers(new_engine(), *requests)
