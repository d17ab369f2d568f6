"""Adapters on disk, in the format of the PEFT library: readable by it, and its own readable here.

    adapter_config.json          rank, alpha, targets; which base model the adapter belongs to
    adapter_model.safetensors    A and B of every adapted layer

An adapter applied with the wrong scale, to half of its layers, or to another base model gives
answers that look only slightly off. So reading one is strict: whatever is not understood, missing,
left over, or of the wrong shape is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora.inject import LoRAConfig, add_lora, lora_layers, remove_lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Fields of PEFT's that say nothing about what the adapter computes.
NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}


@dataclass(frozen=True)
class BaseModel:
    """What an adapter was trained on: Hub id or folder name, commit, sha256 of the weights."""

    name: str | None = None
    revision: str | None = None
    sha256: str | None = None


def save_adapter(model: nn.Module, config: LoRAConfig, base: BaseModel, folder: Path) -> None:
    """Writes the model's LoRA layers to `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({"base_sha256": base.sha256} if base.sha256 else {})
    save_file(adapter_tensors(model), folder / WEIGHTS_FILE, metadata)
    text = json.dumps(peft_config(config, base), indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every LoRA layer, under PEFT's names; the tensors are the model's own."""
    return {
        f"{PREFIX}{name}.lora_{matrix}.weight": getattr(layer, f"lora_{matrix}").weight.detach()
        for name, layer in lora_layers(model).items()
        for matrix in "AB"
    }


def peft_config(config: LoRAConfig, base: BaseModel) -> dict[str, Any]:
    """What adapter_config.json says."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "use_dora": False,
        "target_modules": list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }


def find_adapter(path: Path) -> Path:
    """The adapter's own folder, given it or the folder of a run.

    Raises:
        ValueError: if there is none.
    """
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if not path.exists():
        raise ValueError(f"{path}: there is no such adapter; give its folder or that of its run")
    raise ValueError(f"{path}: has no {CONFIG_FILE}, so it is no adapter and no finished run")


def load_adapter(model: nn.Module, folder: Path) -> BaseModel:
    """Puts the adapter in `folder` into a model that has none.

    Returns:
        The base model that the adapter says it belongs to. Comparing that with what `model` is
        remains to the caller.

    Raises:
        ValueError: if the adapter is damaged, uses what is not understood here, or does not fit;
            `model` is then as it was.
    """
    config, base = read_config(folder / CONFIG_FILE)
    tensors, sha256 = read_weights(folder / WEIGHTS_FILE)
    base = BaseModel(base.name, base.revision, sha256)
    try:
        add_lora(model, config)
    except ValueError as error:
        raise ValueError(f"{folder}: does not fit this model: {error}") from None
    try:
        check_tensors(tensors, adapter_tensors(model), folder, base)
    except ValueError:
        remove_lora(model)
        raise
    for name, own in adapter_tensors(model).items():
        own.copy_(tensors[name])
    return base


def read_config(path: Path) -> tuple[LoRAConfig, BaseModel]:
    """What an adapter_config.json says, if all of it is understood.

    Raises:
        ValueError: naming the field and its value.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"holds {type(raw).__name__}, not an object")
        return lora_config(raw), BaseModel(raw.get("base_model_name_or_path"), raw.get("revision"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def lora_config(raw: Mapping[str, Any]) -> LoRAConfig:
    """The settings in PEFT's fields, every one of them looked at."""
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if name not in raw:
            raise ValueError(f"lacks {name}")
    computed = {
        "peft_type": ("LORA",),
        "bias": ("none",),
        # Other starts (PiSSA, OLoRA, ...) also change the base model's weights.
        "init_lora_weights": (True, False, "gaussian"),
    }
    own = {"r", "lora_alpha", "target_modules", "use_rslora"}
    for name, value in raw.items():
        if name in computed and value not in computed[name]:
            raise ValueError(f"{name} is {value!r}; only {computed[name][0]!r} can be computed")
        if name not in computed.keys() | own | NEUTRAL and value:
            raise ValueError(f"{name} is {value!r}, which cannot be computed here")
    targets = raw["target_modules"]
    if not isinstance(targets, list) or not all(
        isinstance(t, str) and re.fullmatch(r"\w+", t) for t in targets
    ):
        raise ValueError(f"target_modules is {targets!r}, not a list of layer names")
    rank, alpha, rslora = raw["r"], raw["lora_alpha"], raw.get("use_rslora", False)
    if type(rank) is not int or type(alpha) not in (int, float) or type(rslora) is not bool:
        raise ValueError(f"r {rank!r}, lora_alpha {alpha!r} or use_rslora {rslora!r} is no number")
    return LoRAConfig(rank, float(alpha), 0.0, tuple(sorted(targets)), rslora)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of the adapter's file, and the sha256 of the base's weights if it is recorded."""
    try:
        with safe_open(path, framework="pt") as file:
            sha256 = (file.metadata() or {}).get("base_sha256")
            return {name: file.get_tensor(name) for name in file.keys()}, sha256
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; adapters in other formats (.bin) are not read"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None


def check_tensors(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], folder: Path, base: BaseModel
) -> None:
    """Makes sure that the file's tensors are those of the model's LoRA layers, with finite values.

    Raises:
        ValueError: naming the first that is not.
    """
    belongs = f"the adapter belongs to {base.name}" if base.name else "it is another model's"
    for name in sorted(tensors.keys() ^ own.keys()):
        place = "lacks" if name in own else "has, but this model has no layer for,"
        raise ValueError(f"{folder / WEIGHTS_FILE}: {place} {name}; {belongs}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{folder / WEIGHTS_FILE}: {name} is {list(tensor.shape)}, this model "
                f"needs {list(own[name].shape)}; {belongs}"
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{folder / WEIGHTS_FILE}: {name} has values that are not finite")
