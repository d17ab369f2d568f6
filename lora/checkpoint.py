"""A checkpoint: everything that the next optimizer step depends on.

    adapter_config.json          the adapter; a checkpoint is an adapter folder that chat.py takes
    adapter_model.safetensors
    optimizer.safetensors        AdamW's two moments of every weight, by the weight's name
    state.json                   steps done, and the loss scaler's state
    config.json, data.json, metrics.jsonl    the run's own files, in case those are damaged
    manifest.json                size and sha256 of each of them

There is no position in the data and no state of a random generator: both follow from the seed and
the step. Moments are kept by name, since AdamW itself knows weights only by their order, and would
take another weight's momentum without a word.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor, nn

from lora.adapter import WEIGHTS_FILE, adapter_files, adapter_tensors
from lora.checkpoint_folder import STATE
from lora.config import BaseModel, LoRAConfig
from lora.durable import verify_folder
from lora.tensor_file import file_bytes

OPTIMIZER_FILE = "optimizer.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def checkpoint_files(
    step: int,
    model: nn.Module,
    config: LoRAConfig,
    base: BaseModel,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
) -> dict[str, bytes]:
    """The contents of a checkpoint after `step` steps, by file names.

    Raises:
        ValueError: if a number in it is not finite. Such a state is of no use to anybody, and
            would in time push the good ones out.
    """
    moments = optimizer_tensors(model, optimizer)
    for name, tensor in (adapter_tensors(model) | moments).items():
        if not all(map(math.isfinite, tensor.aminmax())):
            raise ValueError(
                f"{name} has values that are not finite after step {step}; nothing was saved. "
                "Start another run with a lower --lr"
            )
    state = {"step": step, "scaler": scaler.state_dict()}
    return adapter_files(model, config, base) | {
        OPTIMIZER_FILE: file_bytes(moments, {}),
        STATE: (json.dumps(state, indent=2) + "\n").encode(),
    }


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler
) -> int:
    """Puts a checkpoint's state into a model that has LoRA layers, and into its optimizer.

    Returns:
        How many steps were done.

    Raises:
        ValueError: if a file is not what was written, or not this model's; all is as before then.
    """
    verify_folder(folder)
    step, scale = read_state(folder / STATE)
    saved, moments = (read_tensors(folder / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE))
    own = adapter_tensors(model)
    expected = expected_moments(model) if moments else {}  # none if no step was finite so far
    check_same_shapes(folder, saved, {name: tensor.shape for name, tensor in own.items()})
    check_same_shapes(folder, moments, expected)
    for name, tensor in own.items():
        tensor.copy_(saved[name])
    if moments:
        by_place: dict[int, dict[str, Tensor]] = {
            place: {moment: moments[f"{name}.{moment}"] for moment in MOMENTS}
            for place, (name, _) in enumerate(trainable(model))
        }
        groups: dict[str, Any] = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": by_place, "param_groups": groups})
    scaler.load_state_dict(scale)
    return step


def read_state(path: Path) -> tuple[int, dict[str, Any]]:
    """How many steps were done, and the loss scaler's state, which is empty without one.

    Raises:
        ValueError: if the file says something else.
    """
    try:
        state = json.loads(path.read_bytes())
        step, scaler = state["step"], state["scaler"]
        if type(step) is not int or step < 0 or not isinstance(scaler, dict):
            raise ValueError(f"step is {step!r}, scaler {scaler!r}")
        if not all(type(value) in (int, float) for value in scaler.values()):
            raise ValueError(f"scaler is {scaler!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no checkpoint's state ({error})") from None
    return step, scaler


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises ValueError if it is no safetensors file."""
    try:
        return tensors_of(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The weights that training changes, with their names, in the order the optimizer has them."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """AdamW's state of every weight, by its name; none before the first step."""
    return {
        f"{name}.{moment}": optimizer.state[p][moment]
        for name, p in trainable(model)
        if p in optimizer.state
        for moment in MOMENTS
    }


def expected_moments(model: nn.Module) -> dict[str, torch.Size]:
    """The shapes that `optimizer_tensors` has after the first step."""
    return {
        f"{name}.{moment}": torch.Size([]) if moment == "step" else p.shape
        for name, p in trainable(model)
        for moment in MOMENTS
    }


def check_same_shapes(
    folder: Path, found: dict[str, Tensor], expected: dict[str, torch.Size]
) -> None:
    """Refuses a checkpoint whose tensors are not exactly the model's. Raises ValueError."""
    for name in sorted(found.keys() | expected.keys()):
        shape = tuple(found[name].shape) if name in found else "no such tensor"
        wanted = tuple(expected[name]) if name in expected else "no such tensor"
        if shape != wanted:
            raise ValueError(f"{folder}: is another model's: {name} is {shape}, needed is {wanted}")
