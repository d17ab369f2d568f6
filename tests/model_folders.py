"""Model folders with small random weights, whole and in shards, for the tests of loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny_config, tiny_llama
from safetensors.torch import save_file
from torch import Tensor

from model.weights import INDEX_FILE, SINGLE_FILE, load_model


def tensors_of(**changes) -> dict[str, Tensor]:
    model = tiny_llama(**changes)
    return {name: p.detach() for name, p in model.named_parameters()}


def single(folder: Path, tensors: dict[str, Tensor], **config) -> Path:
    """A model folder with one weights file."""
    (folder / "config.json").write_text(json.dumps(tiny_config(**config)))
    save_file(tensors, folder / SINGLE_FILE)
    return folder


def sharded(folder: Path, tensors: dict[str, Tensor], **config) -> Path:
    """A model folder with two shards and their index."""
    (folder / "config.json").write_text(json.dumps(tiny_config(**config)))
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))


def weight_map_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX_FILE).read_text())["weight_map"]


def refusal(folder: Path) -> str:
    """What loading says, which has to be one line with the path in it."""
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)
