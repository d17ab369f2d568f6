"""LoRA layers of a model that answers: an adapter should cost each new token as little as it can.

A token passes through A and B as one row, and there are two such products for every adapted layer.
What they take is not the multiplying, it is all that PyTorch does around it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.inject import lora_layers
from lora.layer import Factor

# Rows up to which a float32 product takes less time than one in bfloat16.
FEW_ROWS = 8


class FewRowsFactor(Factor):
    """A or B on a CPU, for bfloat16 inputs: less time for a token, the same for a prompt.

    In PyTorch's x86 builds oneDNN multiplies bfloat16 matrices, and takes 45 us (Zen 4, two
    threads) for one row and so small a weight; float32 matrices go to MKL, which takes 20. The
    weight is kept both ways, 6 bytes a number: 20 MB for rank 16 on q, k, v, o of a 1B model.
    """

    def __init__(self, factor: Factor) -> None:
        super().__init__(factor.in_features, factor.out_features, bias=False, device="meta")
        self.weight = factor.weight
        self.rounded: Tensor
        self.register_buffer("rounded", factor.weight.detach().bfloat16(), persistent=False)
        self.train(factor.training)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out), in bfloat16."""
        if len(x) > FEW_ROWS:
            return F.linear(x, self.rounded)
        return F.linear(x.float(), self.weight).to(x.dtype)


def arrange_lora_for_answers(model: nn.Module) -> None:
    """Rounds A and B to the frozen layers' dtype once, instead of for each token.

    In bfloat16 on a CPU they stay float32 for new tokens, which is faster there and rounds less.
    Not for training, whose steps need float32.
    """
    for layer in lora_layers(model).values():
        dtype = layer.base.weight.dtype
        if (layer.lora_A.weight.device.type, dtype) == ("cpu", torch.bfloat16):
            layer.lora_A = FewRowsFactor(layer.lora_A)
            layer.lora_B = FewRowsFactor(layer.lora_B)
        else:
            layer.lora_A.to(dtype)
            layer.lora_B.to(dtype)
