r"""The LoRA layer: a frozen linear map plus a small trainable correction.

Hu et al., "LoRA", arXiv:2106.09685, section 4.1:

    h  =  W x  +  scale * B A dropout(x)

          +----------- W (out, in), frozen -----------+
     x ---|                                           +---> h
          +-- dropout -- A (r, in) -- B (out, r) -- * scale

Here x holds T tokens of `in` features each; in shape comments the rank r is R.

The product B A has W's shape but only rank r, so it needs r * (in + out) numbers instead of
in * out. A starts random and B at zero: at first the layer computes exactly W x.

The scale is alpha / r, or alpha / sqrt(r) with rank stabilisation (Kalajdzievski,
arXiv:2312.03732), which keeps the correction's size independent of r.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Factor(nn.Linear):
    """A or B: float32 while it is trained, and rounded to the input's dtype for the product.

    In bfloat16 most AdamW steps would round to nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out), in the dtype of `x`."""
        return F.linear(x, self.weight.to(x.dtype))


class LoRALinear(nn.Module):
    """Wraps an `nn.Linear`: freezes it and adds A and B.

    A and B are `nn.Linear`s without bias, so that their weights have PEFT's names and orientation
    and A gets PyTorch's default start, uniform in -1/sqrt(in) to 1/sqrt(in). They are trained in
    float32 whatever the frozen layer's dtype.

    Args:
        base: the layer to adapt.
        rank: r, at least 1.
        alpha: the numerator of the scale, above 0.
        dropout: the probability of dropping an input feature, of the correction only.
        use_rslora: divide alpha by sqrt(r) instead of r.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"LoRA rank is {rank}; it must be at least 1")
        if not 0 < alpha < math.inf:
            raise ValueError(f"LoRA alpha is {alpha}; it must be above 0")
        if not 0 <= dropout < 1:
            raise ValueError(f"LoRA dropout is {dropout}; it must be at least 0 and below 1")
        device = base.weight.device
        self.base = base.requires_grad_(False)
        self.lora_A = Factor(base.in_features, rank, bias=False, device=device, dtype=torch.float32)
        self.lora_B = Factor(
            rank, base.out_features, bias=False, device=device, dtype=torch.float32
        )
        nn.init.zeros_(self.lora_B.weight)
        self.dropout = nn.Dropout(dropout)
        self.scale = lora_scale(rank, alpha, use_rslora)
        self.enabled = True
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out), in the dtype of `x`."""
        frozen = self.base(x)
        if not self.enabled:
            return frozen
        narrow = self.lora_A(self.dropout(x))  # (T, R)
        update = self.lora_B(narrow)
        return frozen + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that computes the same: W + scale * B A, in float32 and rounded once.

        It is new and shares nothing but the bias with this layer, which stays as it is: undoing a
        merge is keeping the original, and merging twice is no mistake that could be made.
        """
        base = self.base.weight
        weight = merged_weight(base, self.lora_A.weight, self.lora_B.weight, self.scale)
        linear = nn.Linear(self.base.in_features, self.base.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(weight.to(base.dtype), requires_grad=False)
        linear.bias = self.base.bias
        return linear.train(self.training)


def lora_scale(rank: int, alpha: float, use_rslora: bool) -> float:
    """What the update B A is multiplied by."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A, in float32 whatever W's dtype is: (out, in).

    In place, and W some rows at a time: of a large matrix there should be no further copy.
    """
    merged = (b @ a).mul_(scale)
    for rows, frozen in zip(merged.split(256), weight.split(256), strict=True):
        rows.add_(frozen)
    return merged
