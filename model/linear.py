"""A frozen linear map, x W^T, by the library that is fastest at it.

PyTorch leaves float32 products on a CPU to MKL, which holds back on processors of other makers
than its own. oneDNN, which comes with PyTorch too, takes less time there, and needs no copy of the
weight in either direction. It pays from some hundred features and a few dozen tokens on; smaller
products, weights that are trained, and every other device and dtype are left to PyTorch.

Shapes: T tokens, any number of features in and out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_TOKENS, FEWEST_WEIGHTS = 32, 2**18


class FrozenLinear(nn.Linear):
    """`nn.Linear` without a bias, which a LoRA layer can wrap like any."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__(features_in, features_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return super().forward(x)
        return FrozenProduct.apply(x, self.weight)


class FrozenProduct(torch.autograd.Function):
    """Computes x W^T, with a gradient for `x` only: (T, in) and (out, in) -> (T, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return product(d_out, weight.T), None


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Computes x W^T without a gradient: (T, in) and (out, in) -> (T, out)."""
    if suits_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], None)
    return F.linear(x, weight)


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there, and faster."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) >= FEWEST_TOKENS
        and weight.numel() >= FEWEST_WEIGHTS
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
