"""Linear layers for answering on a CPU, where a token takes as long as reading the weights does.

One new token multiplies every weight by one number and never uses it again, so the processor waits
for memory: what counts is how many bytes a weight has and how well they stream. Two layers stand in
for `nn.Linear`, which is the plain version of both, as LoRA's stand in for it in training:

    PackedLinear   the same bfloat16 numbers in the order in which oneDNN's kernel reads them
    Int8Linear     8 bits a weight and a scale per output; the exact weights for whole prompts

A model that trains, or computes on another device or in another dtype, keeps its `nn.Linear`s.

Shapes: T tokens in this call; weights are (out, in).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.llama import Llama

PROCESSOR_HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported
# Rows up to which reading the weights costs more than multiplying by them.
FEW_ROWS = 8
LARGE = 2**20  # numbers of a weight, from which on
FASTEST_ROWS = 5  # are multiplied in less time than fewer
SOME_ROWS, ROWS_AT_A_TIME = 16, 32  # of some answers at once, and of a prompt
# The 8-bit kernel takes so many inputs at a time, and reads past a weight's end if some are left.
INPUTS_AT_A_TIME = 16


class PackedLinear(nn.Linear):
    """A linear layer whose weight oneDNN has laid out for its own kernel.

    `nn.Linear` leaves the weight as it is stored, and the kernel reads it with strides. The packed
    weight replaces the stored one, of which nothing stays: it has the same shape and dtype, but can
    only be multiplied with.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.fewest_rows = FASTEST_ROWS if linear.weight.numel() >= LARGE else 1

    @staticmethod
    def takes(linear: nn.Linear) -> bool:
        """Whether the kernel can stand in for this layer, on a processor that it is made for."""
        has_onednn = torch.backends.mkldnn.is_available()
        return has_onednn and PROCESSOR_HAS_BF16() and is_plain_bf16(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out), in bfloat16."""
        tokens = x.shape[0]
        rows = self.rows_of_kernel(tokens)
        if rows == tokens:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        filled = F.pad(x, (0, 0, 0, rows - tokens))
        out = torch.ops.mkldnn._linear_pointwise(filled, self.weight, None, "none", [], "")
        return out[:tokens]

    def rows_of_kernel(self, tokens: int) -> int:
        """With how many rows the kernel is called; those added do not change the tokens' results.

        oneDNN compiles a kernel for each number of rows. Rounded up, prompts of all lengths share a
        few. And the one for five streams a large weight in less time than that for one: a tenth to
        a fifth less on Zen 4.
        """
        if tokens <= FEW_ROWS:
            return max(tokens, self.fewest_rows)
        at_a_time = SOME_ROWS if tokens <= SOME_ROWS else ROWS_AT_A_TIME
        return -(-tokens // at_a_time) * at_a_time


class Int8Linear(nn.Linear):
    """A linear layer with 8 bits a weight where the weights' bytes are what takes the time.

    Each output has a scale of its own, the largest of its weights over 127 (per output channel,
    symmetric, rounded to the nearest: LLM.int8(), arXiv:2208.07339, section 2.1, of the weights
    alone). The inputs stay bfloat16.

    With more than `FEW_ROWS` rows the products cost more than the bytes, and 8 bits would make them
    slower. So a prompt passes through the exact weights: those of the file, which are mapped, not
    copied, and whose pages the system takes back while answers are written.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        quantized, scales = quantize(linear.weight.detach())
        self.quantized: Tensor
        self.scales: Tensor
        self.register_buffer("quantized", quantized, persistent=False)
        self.register_buffer("scales", scales.to(linear.weight.dtype), persistent=False)

    @staticmethod
    def takes(linear: nn.Linear) -> bool:
        """Whether the kernel can stand in for this layer."""
        return linear.in_features % INPUTS_AT_A_TIME == 0 and is_plain_bf16(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out), in bfloat16."""
        if len(x) > FEW_ROWS:
            return F.linear(x, self.weight)
        return torch.ops.aten._weight_int8pack_mm(x, self.quantized, self.scales)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The integers and the scales whose product is nearest to a weight.

    Args:
        weight: (out, in), of any float dtype. It is read some rows at a time: a float32 copy of a
            head would take more memory than all that is kept.

    Returns:
        int8 numbers from -127 to 127, (out, in), and float32 scales, (out,).
    """
    integers = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    for rows, some, scale in zip(
        integers.split(1024), weight.split(1024), scales.split(1024), strict=True
    ):
        # An output whose weights are all zero has any scale but zero, which nothing divides by.
        scale.copy_(
            some.abs().amax(dim=1).float().div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
        )
        rows.copy_(some.float().div(scale[:, None]).round_())
    return integers, scales


def arrange_for_answers(model: Llama, quantize: str | None = None) -> Llama:
    """Replaces the linear layers of a model by those that answer fastest on a CPU.

    A layer that the kernel does not take stays as it is: on another device, in another dtype, with
    a bias, of an odd size, or where PyTorch was built without oneDNN.

    Args:
        model: in evaluation mode; it cannot be trained afterwards. An adapter may follow.
        quantize: None or "int8", as `check_quantize` allows.

    Returns:
        The same model.
    """
    kind = Int8Linear if quantize == "int8" else PackedLinear
    # By name and one at a time: a list of the layers would hold all old weights until the end.
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        owner, _, attribute = name.rpartition(".")
        parent = model.get_submodule(owner)
        if kind.takes(getattr(parent, attribute)):
            setattr(parent, attribute, kind(getattr(parent, attribute)).train(False))
    return model


def is_plain_bf16(linear: nn.Linear) -> bool:
    """Whether a layer is nothing but a bfloat16 matrix on a CPU."""
    weight = linear.weight
    where = weight.device.type, weight.dtype, weight.layout
    return linear.bias is None and where == ("cpu", torch.bfloat16, torch.strided)
