"""A Llama's tensors as GGUF has them: their names, the order of their rows, their rounding.

Shapes: D hidden_size, E head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from model.config import LlamaConfig
from model.rope import slow_down

F32, F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
KINDS = {
    "f16": (F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
ROPE_FACTORS = "rope_freqs.weight"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Numbers that are rounded at once: what this needs beside the tensor itself stays small.
BLOCK = 2**20


def gguf_name(name: str) -> str:
    """What llama.cpp calls the tensor that the Hub calls `name`."""
    name, _, attribute = name.rpartition(".")
    if not name.startswith("model.layers."):
        return f"{NAMES[name]}.{attribute}"
    _, _, layer, inner = name.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{attribute}"


def gguf_type(shape: Sequence[int], kind: str) -> GGMLQuantizationType:
    """How a tensor is stored in a file of this kind.

    Norms are a thousandth of the weights and matter in every layer: they stay as they are. Q8_0
    takes 32 numbers of a row at a time, so that odd matrices are left in F16.
    """
    if len(shape) == 1:
        return F32
    wanted, _ = KINDS[kind]
    block_size, _ = GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block_size == 0 else F16


def in_rope_pairs(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """The tensor with its rows in llama.cpp's order, which differs for queries and keys.

    llama.cpp turns neighbouring features, (0, 1), (2, 3), ..., where the Hub's files turn (0, E/2),
    (1, E/2 + 1), ...: see `model/rope.py`. So within each head, row i of the first half is followed
    by row i of the second.
    """
    if not is_turned(name):
        return tensor
    halves = tensor.view(-1, 2, head_dim // 2, tensor.shape[-1])
    return halves.transpose(1, 2).reshape(tensor.shape)


def is_turned(name: str) -> bool:
    """Whether RoPE turns what this tensor computes."""
    return name.endswith(("q_proj.weight", "k_proj.weight"))


def rope_factors(config: LlamaConfig) -> Tensor | None:
    """What llama.cpp divides each pair's speed by, float32, (E/2,); None without RoPE scaling."""
    if config.rope_scaling is None:
        return None
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim  # (E/2,)
    speeds = config.rope_theta**-exponents  # (E/2,)
    return (speeds / slow_down(speeds, config.rope_scaling)).float()


def byte_shape(shape: Sequence[int], kind: GGMLQuantizationType) -> tuple[int, ...]:
    """The shape of an encoded tensor, as bytes."""
    return quant_shape_to_byte_shape(shape, kind)


def encoded(name: str, tensor: Tensor, kind: GGMLQuantizationType, head_dim: int) -> np.ndarray:
    """The bytes that a file has for the Hub's float32 tensor `name`, uint8 in `byte_shape`.

    Raises:
        ValueError: if it has a number that the type cannot express.
    """
    result = np.empty(byte_shape((len(tensor), tensor[0].numel()), kind), np.uint8)
    for rows in blocks_of_rows(tensor.shape, head_dim):
        block = in_rope_pairs(name, tensor[rows], head_dim).reshape(-1, tensor[0].numel()).numpy()
        largest = np.abs(block).max()
        if kind == F16 and largest > np.finfo(np.float16).max:
            raise ValueError(f"{name} has {largest:g} in it, which f16 cannot express; choose bf16")
        result[rows] = quantize(block, kind).view(np.uint8)
    return result.reshape(byte_shape(tensor.shape, kind))


def blocks_of_rows(shape: Sequence[int], head_dim: int) -> Iterator[slice]:
    """Cuts a tensor's rows into blocks of about `BLOCK` numbers, and of whole heads."""
    step = max(1, BLOCK // math.prod(shape[1:]) // head_dim) * head_dim
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
