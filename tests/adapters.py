"""A small Llama with a random adapter that matters, and what tests compare about such models."""

from __future__ import annotations

from typing import Any

import torch
from conftest import random_tokens, tiny_llama
from torch import Tensor, nn

from lora.config import LoRAConfig
from lora.inject import add_lora, lora_layers
from model.attention import Packed


def adapted_llama(config: LoRAConfig, std: float = 0.3, **changes: Any) -> nn.Module:
    """`tiny_llama` with an adapter whose update is as large as the weights; B is not zero."""
    model = tiny_llama(**changes)
    add_lora(model, config)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        for matrix in (layer.lora_A, layer.lora_B):
            nn.init.normal_(matrix.weight, std=std, generator=generator)
    return model


def logits(model: nn.Module, count: int = 31) -> Tensor:
    """The scores that a model gives to some random tokens, on its own device, (count, V)."""
    device = next(model.parameters()).device
    return model(random_tokens(count).to(device), Packed([count]))


def state(model: nn.Module) -> dict[str, Any]:
    """All that a refusal must leave alone: modules, tensors, what is trained, what is computed."""
    modules = {name: (type(m), m.training) for name, m in model.named_modules()}
    tensors = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    return {"modules": modules, "tensors": tensors, "logits": logits(model).tolist()}


def relative_error(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference over the largest absolute value of `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()
