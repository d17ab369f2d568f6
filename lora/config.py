"""An adapter's settings, and PEFT's file of them: adapter_config.json.

Reading that file is strict. An adapter applied with the wrong scale or to half of its layers gives
answers that look only slightly off, so a field that is not understood here is an error.
Needs no PyTorch, so that a wrong adapter is refused before it is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE, CARD = "adapter_config.json", "README.md"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

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
class LoRAConfig:
    """Which layers to adapt and how strongly; `lora/layer.py` explains the numbers.

    `targets` are the last components of module names.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ATTENTION
    use_rslora: bool = False


@dataclass(frozen=True)
class BaseModel:
    """What an adapter was trained on: Hub id or folder name, commit, sha256 of the weights."""

    name: str | None = None
    revision: str | None = None
    sha256: str | None = None


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
    except (ValueError, OSError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; take another adapter") from None


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
    rslora = raw.get("use_rslora", False)
    numbers = {
        "r": (raw["r"], int, "a whole number"),
        "lora_alpha": (raw["lora_alpha"], int | float, "a number"),
        "use_rslora": (rslora, bool, "true or false"),
    }
    for name, (value, kind, wanted) in numbers.items():
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} is {value!r}, not {wanted}")
    if not 0 < raw["lora_alpha"] < math.inf:
        raise ValueError(f"lora_alpha is {raw['lora_alpha']!r}; it must be above 0")
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(raw.get(name), str | None):
            raise ValueError(f"{name} is {raw[name]!r}, not a text")
    return LoRAConfig(raw["r"], float(raw["lora_alpha"]), 0.0, tuple(sorted(targets)), rslora)


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
