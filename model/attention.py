"""Who may look at whom: attention over tokens that belong to several texts.

The model sees one flat stream of T tokens. An *attention pattern* says which positions they have
and which earlier tokens each of them attends to. There are two, and `model/llama.py` does not know
which one it is given:

    Packed          whole documents end to end (training, scoring)    this file
    CachedAttention new tokens of texts begun earlier (generation)    model/cache.py

A padded batch is no third case. `Packed` runs over its real tokens, and nothing is computed for
padding (`Llama.forward_padded`).

Shapes: T tokens in this call, S tokens attended to, H query heads, K key/value heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.block_attention import BlockAttention


class AttentionPattern(Protocol):
    """What an attention layer needs to know of the texts that its tokens come from."""

    def positions(self, device: torch.device) -> Tensor:
        """Each token's place in its own text: int64, (T,)."""
        ...

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each query's weighted mean of the values that it may see.

        Shapes: q (T, H, E), k and v (T, K, E) -> (T, H, E).
        """
        ...


class Packed:
    """Documents end to end: each token sees itself and what stands before it in its own document.

    Looping over the documents makes the mask block-diagonal without building a mask: nothing is
    computed for the blocks that it would have blanked out, and nothing can leak through them.

    Args:
        lengths: tokens of each document, at least 1; they add up to T.
        positions: int64, (T,), to override 0, 1, 2, ... within each document.
    """

    def __init__(self, lengths: Sequence[int], positions: Tensor | None = None) -> None:
        assert all(length > 0 for length in lengths), f"a document without tokens: {lengths}"
        self.lengths = list(lengths)
        self.given_positions = positions

    def positions(self, device: torch.device) -> Tensor:
        if self.given_positions is not None:
            return self.given_positions.to(device)
        return torch.cat([torch.arange(length, device=device) for length in self.lengths])

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        documents = zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True)
        return torch.cat([causal_attention(*document) for document in documents])


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within one text whose last T tokens are the queries.

    Each gets softmax(q k^T / sqrt(E)) v over the keys that do not come after it: Vaswani et al.,
    "Attention Is All You Need", arXiv:1706.03762, section 3.2.1.

    Args:
        q: (T, H, E).
        k: (S, K, E) with S >= T. Query head h uses key/value head h // (H / K): grouped-query
            attention, Ainslie et al., arXiv:2305.13245.
        v: like `k`.

    Returns:
        (T, H, E).
    """
    T, S = len(q), len(k)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # the same, twice as fast there
        return BlockAttention.apply(q, k, v)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    # `is_causal` draws its triangle from the top left corner, which is right only if T == S.
    if takes_no_gqa(q):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    mask = None if T == S else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=k.shape[1] != q.shape[1]
    )
    return out[0].transpose(0, 1)


def takes_no_gqa(q: Tensor) -> bool:
    """Whether shared key/value heads would cost PyTorch's fast kernels on this device and dtype.

    On CUDA only FlashAttention shares heads, which needs 16 bits and an Ampere or later. Without it
    there is the memory-efficient kernel for equal heads; or else one that keeps T x S scores.
    """
    if not q.is_cuda:
        return False
    return q.dtype == torch.float32 or torch.cuda.get_device_capability(q.device) < (8, 0)
