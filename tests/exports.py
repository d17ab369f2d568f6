"""Base models with adapters to export, and what the tests look at in what came of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from adapters import adapted_llama
from model_folders import single, tensors_of
from safetensors import safe_open
from texts import write_small_llama3_tokenizer
from torch import Tensor, nn

import lora.layer
from lora.adapter import save_adapter
from lora.config import ATTENTION, MLP, BaseModel, LoRAConfig
from model.weights import weights_sha256
from publish.model_folder import write_model
from publish.source import open_source

VOCAB_SIZE = 400
END_OF_TURN = 6  # <|eot_id|> of the small tokenizer
ALL = LoRAConfig(4, 6.0, targets=ATTENTION + MLP)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGE = 10**9


class Pair(NamedTuple):
    """A base model and an adapter for it on disk, and both together in memory."""

    base: Path
    adapter: Path
    model: nn.Module

    def merge(self, folder: Path, dtype: str = "auto", max_shard_bytes: int = LARGE) -> str:
        """Writes the merged model; returns what is printed of it."""
        source = open_source(str(self.adapter), str(self.base))
        return write_model(source, folder, dtype, max_shard_bytes)


def make_pair(
    folder: Path,
    lora: LoRAConfig = ALL,
    std: float = 0.15,
    write: Callable[..., Path] = single,
    change: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
    **config: Any,
) -> Pair:
    """A random Llama with a tokenizer, and an adapter that matters.

    Args:
        folder: where to.
        lora: the adapter's settings.
        std: the standard deviation of A and B.
        write: `single` or `sharded`.
        change: what to do to the base's tensors before they are written.
        config: changes to the base's config.json.
    """
    config = {"vocab_size": VOCAB_SIZE, "num_hidden_layers": 2} | config
    base, adapter = folder / "base", folder / "adapter"
    write_small_llama3_tokenizer(base)
    tensors = tensors_of(**config)
    change(tensors)
    write(base, tensors, **config)
    model = adapted_llama(lora, std, **config)
    save_adapter(model, lora, BaseModel("some/llama", None, weights_sha256(base)), adapter)
    return Pair(base, adapter, model)


def as_dtype(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], None]:
    """A change of the base's tensors: all in another dtype."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    return change


def stored_twice(tensors: dict[str, Tensor]) -> None:
    """A change of the base's tensors: the tied head is in the file, too."""
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def weights_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def read_all(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder; no name may be in two files."""
    tensors: dict[str, Tensor] = {}
    for path in weights_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                assert name not in tensors
                tensors[name] = file.get_tensor(name)
    return tensors


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether these are the same tensors, dtype, shape and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
        for name, tensor in one.items()
    )


def layers(pair: Pair) -> dict[str, lora.layer.LoRALinear]:
    """The adapted layers, by the names of their merged weights."""
    found = pair.model.named_modules()
    return {f"{n}.weight": m for n, m in found if isinstance(m, lora.layer.LoRALinear)}


def exact_updates(pair: Pair, config: LoRAConfig) -> dict[str, Tensor]:
    """What the adapter adds to each weight: the paper's product, dense and in float64."""
    scale = config.alpha / (math.sqrt(config.rank) if config.use_rslora else config.rank)
    return {
        name: scale * torch.einsum("or,ri->oi", m.lora_B.weight.double(), m.lora_A.weight.double())
        for name, m in layers(pair).items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_json(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file, which is made if need be."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | changes, indent=3))
