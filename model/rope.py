r"""Rotary position embedding (RoPE): a token's position becomes a rotation of its query and key.

Su et al., "RoFormer", arXiv:2104.09864, section 3. A head's E features form E/2 pairs; at position
m pair i turns by the angle m * theta_i, with theta_i = rope_theta^(-2i/E). A query's product with
a key then depends only on how far apart the two are: turning both alike changes nothing.

Which features make a pair? There are two answers, NOT interchangeable for given weights:

    interleaved (the paper, Meta's code, GGUF)    (0, 1)     (2, 3)       (4, 5)  ...
    half-split  (Hugging Face's files, this one)  (0, E/2)   (1, E/2+1)   (2, E/2+2)  ...

Meta's release and Hugging Face's files hold the same network: the rows of q_proj and k_proj were
reordered to match. Reading one with the other's rule gives fluent-looking nonsense.

Everything here is float32 whatever the model's dtype: bfloat16 cannot even tell position 257 from
256. The angles are recomputed from the configuration, never stored, so no cast can touch them.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from model.config import LlamaConfig, RopeScaling


@functools.lru_cache(maxsize=8)
def rotation_speeds(config: LlamaConfig, device: torch.device) -> Tensor:
    """theta_i of each pair in radians per token, fastest first: float32, (E/2,)."""
    E = config.head_dim
    exponents = torch.arange(0, E, 2, dtype=torch.float32, device=device) / E  # (E/2,)
    speeds = 1.0 / config.rope_theta**exponents  # (E/2,)
    return speeds if config.rope_scaling is None else slow_down(speeds, config.rope_scaling)


def slow_down(speeds: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's stretching of RoPE to contexts longer than those of pre-training.

    Pairs that turn often within the original context tell near tokens apart and stay as they are;
    pairs that never complete `low_freq_factor` turns in it are slowed down by `factor`, so that the
    longer context spans the angles that training saw; those in between are blended linearly.

    Same rule as `_compute_llama3_parameters` in transformers 5.23, modeling_rope_utils.py, and as
    `apply_scaling` in meta-llama/llama-models a9c89c4, models/llama3/model.py, which however fixes
    `factor` at 8, Llama 3.1's: 3.2 needs 32.
    """
    turns = scaling.original_max_position_embeddings * speeds / (2 * math.pi)  # (E/2,)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)  # (E/2,)
    return (1 - kept) * speeds / scaling.factor + kept * speeds


def rope_table(config: LlamaConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine of every pair's angle at every position.

    Args:
        config: the model's.
        positions: int64, (T,).

    Returns:
        Two float32 tensors of shape (T, 1, E), where the 1 stands for all heads alike: the cosines
        twice, for a pair's first and second feature, and the sines, negative for the first.
    """
    speeds = rotation_speeds(config, positions.device)  # (E/2,)
    # Broadcasting, not a matrix product: autocast would round the latter's inputs.
    angles = positions.float()[:, None, None] * speeds  # (T, 1, E/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair (a, b) of `x` to (a cos - b sin, b cos + a sin).

    That is cos times the pair as it is, plus sin, negative for the first, times the pair swapped.

    Args:
        x: queries or keys, (T, heads, E).
        rope: the cosines and the signed sines from `rope_table`.

    Returns:
        The shape and dtype of `x`; computed in float32 or better.
    """
    cos, signed_sin = rope
    exact = x.to(torch.promote_types(x.dtype, cos.dtype))
    swapped = exact.roll(x.shape[-1] // 2, dims=-1)
    return (exact * cos + swapped * signed_sin).to(x.dtype)
