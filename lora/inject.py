"""Putting LoRA into a model, switching it off for a while, and taking it out again.

Works on any module that is made of `nn.Linear`s; nothing here knows what a Llama is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lora.config import LoRAConfig
from lora.layer import LoRALinear


def add_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Freezes `model` and wraps every linear layer that a target names.

    Returns:
        The full names of the wrapped layers, in the model's order.

    Raises:
        ValueError: if the layers cannot be adapted (see `layers_to_adapt`) or a setting is out of
            its range; the model is then as it was.
    """
    adapted = {
        name: LoRALinear(linear, config.rank, config.alpha, config.dropout, config.use_rslora)
        for name, linear in layers_to_adapt(model, config).items()
    }
    model.requires_grad_(False)
    for name, layer in adapted.items():
        replace(model, name, layer)
    return list(adapted)


def layers_to_adapt(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Linear]:
    """The linear layers that a target names, by their full names, in the model's order.

    Raises:
        ValueError: if the model has LoRA layers already, if a target matches no layer, or if it
            matches one that shares its weight (a tied head), where the update would be lost.
    """
    if lora_layers(model):
        raise ValueError("this model has LoRA layers already; merge or remove them first")
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    targeted = {name: m for name, m in linears.items() if last(name) in config.targets}
    unmatched = set(config.targets) - {last(name) for name in targeted}
    if unmatched or not targeted:
        known = ", ".join(sorted({last(name) for name in linears}))
        raise ValueError(f"no layer is called {sorted(unmatched)}; the model has {known}")
    weights = [p for _, p in model.named_parameters(remove_duplicate=False)]
    for name, linear in targeted.items():
        if sum(p is linear.weight for p in weights) > 1:
            raise ValueError(f"{name} shares its weight with another layer; leave it out")
    return targeted


def merge_lora(model: nn.Module) -> None:
    """Replaces every LoRA layer by a plain layer that computes the same."""
    for name, layer in lora_layers(model).items():
        replace(model, name, layer.merged())


def remove_lora(model: nn.Module) -> None:
    """Puts back the layers that `add_lora` wrapped, untouched."""
    for name, layer in lora_layers(model).items():
        replace(model, name, layer.base)


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Within this context the model computes what it did before it was adapted."""
    layers = lora_layers(model).values()
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's LoRA layers by their full names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def last(name: str) -> str:
    """The last component of a dotted module name."""
    return name.rpartition(".")[2]


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Sets the sub-module called `name` to `new`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
