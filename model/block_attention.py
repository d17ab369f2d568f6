r"""Causal attention in blocks of queries, by matrix products: on a CPU faster than the kernel.

It computes what `causal_attention` in model/attention.py does, which is the one to read first.
PyTorch's kernel for CPUs multiplies small tiles, and in bfloat16 reaches a tenth of what the
processor can do. The product of 128 queries with all the keys that they may see is large enough to
reach most of it, and what lies above the diagonal is computed within one block only:

    queries 0..127     #.                 the last of a block's keys are masked by a triangle,
    queries 128..255   ##.                those before are seen by every query of the block
    queries 256..383   ###.

The H / K query heads that share a key/value head stand side by side as rows of one product, so no
key is copied for them (grouped-query attention, Ainslie et al., arXiv:2305.13245).

Fillers make the place of the first query and the number of keys multiples of 32. They change
nothing: a filler among the keys stands behind all queries but other fillers, and what a filler
among the queries would see is dropped. But oneDNN makes a kernel for each shape that it meets, and
PyTorch keeps a thousand, of up to half a MB. This way texts of up to 1,024 tokens share a hundred.

What it costs: the scores come out of their product rounded to bfloat16, while the kernel keeps them
in float32. Eager attention in transformers rounds them, too. On SmolLM2 the logits' rounding error
is the same within 2 %.

Shapes: T queries, S >= T keys, of which the last T are the queries' own; T' and S' with fillers;
H query heads, K key/value heads, G = H / K, E head_dim; R = G times the queries of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

QUERIES = 128  # of a block
MULTIPLE = 32  # of rows, as in data/batches.py


class BlockAttention(torch.autograd.Function):
    """(T, H, E) queries, (S, K, E) keys and as many values -> (T, H, E).

    Only those three are kept; the backward pass computes the weights again, a block at a time.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        queries, keys, values = arranged(q, k, v)
        out = torch.empty_like(queries)
        for rows, seen, triangle in blocks(q, k):
            weights = weights_of_block(queries[:, rows], keys[:, :seen], triangle)
            out[:, rows] = weights @ values[:, :seen]
        return by_token(out, place_of_queries(q, k), q.shape[1])

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        q, k, v = ctx.saved_tensors
        queries, keys, values = arranged(q, k, v)
        place = place_of_queries(q, k)
        d_seen = by_key_head(d_out, k.shape[1], place.start)
        d_q = torch.empty_like(queries)
        exact = torch.promote_types(k.dtype, torch.float32)  # for sums over many blocks
        d_k, d_v = (torch.zeros_like(x, dtype=exact) for x in (keys, values))
        for rows, seen, triangle in blocks(q, k):
            weights = weights_of_block(queries[:, rows], keys[:, :seen], triangle)
            d_v[:, :seen] += weights.transpose(1, 2) @ d_seen[:, rows]
            d_weights = d_seen[:, rows] @ values[:, :seen].transpose(1, 2)
            # Of a softmax: d score = weight * (d weight - sum of all weight * d weight).
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, q.dtype)
            d_q[:, rows] = d_scores @ keys[:, :seen]
            d_k[:, :seen] += d_scores.transpose(1, 2) @ queries[:, rows]
        d_k *= q.shape[2] ** -0.5
        of_keys = slice(len(k))
        d_k, d_v = (by_token(x.to(k.dtype), of_keys, k.shape[1]) for x in (d_k, d_v))
        return by_token(d_q, place, q.shape[1]), d_k, d_v


def place_of_queries(q: Tensor, k: Tensor) -> slice:
    """Where the T queries are among the T': behind fillers, if they begin at no multiple of 32."""
    start = (len(k) - len(q)) % MULTIPLE
    return slice(start, start + len(q))


def blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
    """The blocks' rows, how many keys they may see, and the triangle over the last of those."""
    G = q.shape[1] // k.shape[1]
    first = len(k) - len(q) - place_of_queries(q, k).start
    last = whole_multiples(len(k))
    for start in range(first, last, QUERIES):
        end = min(start + QUERIES, last)
        rows = slice((start - first) * G, (end - first) * G)
        yield rows, end, causal_triangle(end - start, G, q.dtype)


@functools.lru_cache(maxsize=16)
def causal_triangle(count: int, group: int, dtype: torch.dtype) -> Tensor:
    """What to add to the scores of `count` queries and their own keys: -inf for later ones.

    Each query has a row for every one of the `group` heads that share a key/value head.
    """
    triangle = torch.full((count, count), -torch.inf, dtype=dtype).triu(1)
    return triangle.repeat_interleave(group, dim=0)


def weights_of_block(queries: Tensor, keys: Tensor, triangle: Tensor) -> Tensor:
    """The weights of a block's rows: (K, R, E) and (K, S, E) -> (K, R, S)."""
    scores = queries @ keys.transpose(1, 2)
    scores[:, :, -triangle.shape[1] :] += triangle
    return scores.softmax(-1)  # in float32 inside


def arranged(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By key head: the queries, (K, T' G, E), the keys over sqrt(E) and the values, (K, S', E)."""
    key_heads = k.shape[1]
    queries = by_key_head(q, key_heads, place_of_queries(q, k).start)
    keys = by_key_head(k, key_heads).mul_(q.shape[2] ** -0.5)
    return queries, keys, by_key_head(v, key_heads)


def by_key_head(x: Tensor, key_heads: int, start: int = 0) -> Tensor:
    """(T, H, E) -> (K, T' G, E): for each key head one token after the other, with its G heads.

    Fillers are zeros, `start` of them before the first token and some behind the last.
    """
    grouped = x.unflatten(1, (key_heads, -1)).transpose(0, 1)
    count = whole_multiples(start + len(x))
    filled = x.new_zeros(key_heads, count, *grouped.shape[2:])
    filled[:, start : start + len(x)] = grouped
    return filled.flatten(1, 2)


def by_token(x: Tensor, place: slice, heads: int) -> Tensor:
    """The inverse of `by_key_head`, without the fillers around `place`."""
    grouped = x.unflatten(1, (-1, heads // len(x)))[:, place]
    return grouped.transpose(0, 1).flatten(1, 2)


def whole_multiples(count: int) -> int:
    """A number of tokens with the fillers."""
    return -(-count // MULTIPLE) * MULTIPLE
