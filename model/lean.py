"""Two formulas of a Llama's layers, with backward passes that keep no more than they need.

PyTorch would differentiate them by itself, step by step, and keep what each step returned. Of a
norm that is two float32 copies of its input, of SwiGLU one more vector of the layer's widest size.
The input itself is there in any case, and says all: the rest is computed again, which takes less
time than the memory would.

Shapes: T tokens, D hidden_size, F intermediate_size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


class RMSNormalization(torch.autograd.Function):
    """weight * x / rms(x), with the root of the mean square computed in float32 or better.

    (T, D) inputs, a (D,) weight, and eps, which is added to the mean square.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (exact * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        """With n = x / rms(x) and g = d_out * weight: d_x = (g - n * mean(g * n)) / rms(x)."""
        x, weight, inverse = ctx.saved_tensors
        n = x * inverse
        d_weight = (d_out * n).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        g = d_out.to(n.dtype) * weight
        mean = (g * n).mean(-1, keepdim=True)
        d_x = g.sub_(n.mul_(mean)).mul_(inverse)
        return d_x.to(x.dtype), d_weight, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, of two (T, F) inputs. Shazeer, arXiv:2002.05202, section 2."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        d_gate = torch.ops.aten.silu_backward(d_out * up, gate)
        return d_gate, silu(gate).mul_(d_out)
