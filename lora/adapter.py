"""Adapters on disk, in the format of the PEFT library: readable by it, and its own readable here.

    adapter_config.json          rank, alpha, targets; which base model the adapter belongs to
    adapter_model.safetensors    A and B of every adapted layer

Reading one is strict: whatever is not understood, missing, left over, or of the wrong shape is an
error. PEFT itself takes an adapter whose keys it does not know for one that changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lora.config import CONFIG_FILE, BaseModel, LoRAConfig, peft_config, read_config
from lora.inject import add_lora, layers_to_adapt, lora_layers
from lora.tensor_file import file_bytes

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


def save_adapter(model: nn.Module, config: LoRAConfig, base: BaseModel, folder: Path) -> None:
    """Writes the model's LoRA layers to `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in adapter_files(model, config, base).items():
        (folder / name).write_bytes(content)


def adapter_files(model: nn.Module, config: LoRAConfig, base: BaseModel) -> dict[str, bytes]:
    """The contents of an adapter's files, by their names."""
    metadata = {"format": "pt"} | ({"base_sha256": base.sha256} if base.sha256 else {})
    text = json.dumps(peft_config(config, base), indent=2) + "\n"
    weights = file_bytes(adapter_tensors(model), metadata)
    return {CONFIG_FILE: text.encode(), WEIGHTS_FILE: weights}


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every LoRA layer, under PEFT's names; the tensors are the model's own."""
    return {
        f"{PREFIX}{name}.lora_{matrix}.weight": getattr(layer, f"lora_{matrix}").weight.detach()
        for name, layer in lora_layers(model).items()
        for matrix in "AB"
    }


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
    check_fits(tensors, model, config, base, folder)
    add_lora(model, config)
    for name, own in adapter_tensors(model).items():
        own.copy_(tensors[name])
    return base


def check_fits(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    config: LoRAConfig,
    base: BaseModel,
    folder: Path,
) -> None:
    """Makes sure that the tensors of the adapter in `folder` are what `model` needs, all of them.

    Raises:
        ValueError: naming the first that is missing, left over, or of another shape.
    """
    try:
        check_tensors(tensors, tensor_shapes(model, config), base)
    except ValueError as error:
        raise ValueError(f"{folder}: does not fit this model: {error}") from None


def tensor_shapes(model: nn.Module, config: LoRAConfig) -> dict[str, list[int]]:
    """The shapes that an adapter with these settings has to have for `model`."""
    shapes = {}
    for name, linear in layers_to_adapt(model, config).items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = [config.rank, linear.in_features]
        shapes[f"{PREFIX}{name}.lora_B.weight"] = [linear.out_features, config.rank]
    return shapes


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of the adapter's file, and the sha256 of the base's weights if it is recorded."""
    try:
        with safe_open(path, framework="pt") as file:
            sha256 = (file.metadata() or {}).get("base_sha256")
            return {name: file.get_tensor(name) for name in file.keys()}, sha256
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; adapters in other formats (.bin) are not read, take another"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); take another adapter"
        ) from None


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]], base: BaseModel
) -> None:
    """Makes sure that the file's tensors have these names and shapes, and finite values.

    Raises:
        ValueError: naming the first that is not.
    """
    belongs = f"the adapter belongs to {base.name}" if base.name else "it is another model's"
    for name in sorted(tensors.keys() ^ shapes.keys()):
        place = "lacks" if name in shapes else "has, but the model has no layer for,"
        raise ValueError(f"{WEIGHTS_FILE} {place} {name}; {belongs}")
    for name, tensor in tensors.items():
        if list(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{WEIGHTS_FILE} has {name} of shape {list(tensor.shape)}, the model needs "
                f"{shapes[name]}; {belongs}"
            )
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise ValueError(f"{WEIGHTS_FILE} has values in {name} that are not finite")
