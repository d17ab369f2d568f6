"""The KV cache: keys and values of the tokens already seen, so that a new token costs one token.

Shapes: B texts in the cache, T tokens in this call, S tokens of the longest text so far,
H query heads, K key/value heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import causal_attention
from model.config import LlamaConfig


class KVCache:
    """Room for B texts of up to `capacity` tokens each, allocated once.

    `tokens[b]` lists what the cache holds of text b, so that a later prompt can be compared with
    it and only what is new computed.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        layers, K, E = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        # Not `empty`: what a mask hides still enters as 0 times its value, and 0 * NaN is NaN.
        self.keys = torch.zeros(layers, rows, K, capacity, E, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]

    @property
    def capacity(self) -> int:
        """Tokens that each text may have."""
        return self.keys.shape[3]

    def rewind(self, row: int, length: int) -> None:
        """Forgets all but the first `length` tokens of text `row`."""
        del self.tokens[row][length:]

    def grow(self, capacity: int) -> None:
        """Makes room for at least `capacity` tokens a text, keeping what is there."""
        missing = capacity - self.capacity
        if missing > 0:
            layers, B, K, _, E = self.keys.shape
            room = self.keys.new_zeros(layers, B, K, missing, E)
            self.keys = torch.cat([self.keys, room], dim=3)
            self.values = torch.cat([self.values, room], dim=3)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops every text but those of the given rows."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.tokens = [self.tokens[row] for row in rows]


class CachedAttention:
    """The attention pattern of a call that adds tokens to the texts of a cache.

    The stream holds the new tokens of text 0, then those of text 1, and so on. They count as seen
    from `done` on, after the last layer: a call that dies midway has added nothing. Not for
    gradients: what is written into the cache has none.
    """

    def __init__(self, cache: KVCache, new: Sequence[Sequence[int]]) -> None:
        assert len(new) == len(cache.tokens) and all(new), "every text of the cache must go on"
        self.cache = cache
        self.new = new
        self.lengths = [len(tokens) for tokens in new]
        self.past = [len(tokens) for tokens in cache.tokens]
        self.ends = [past + n for past, n in zip(self.past, self.lengths, strict=True)]
        assert max(self.ends) <= cache.capacity, f"{max(self.ends)} tokens > {cache.capacity}"
        # Made once and not in every layer: the views of what is in use, (B, K, S, E) each, and of
        # where the new tokens go. If all texts have one length, that is one place, (B, K, E) in
        # each layer; else it takes indices, for whose copy to a GPU the processor waits.
        longest = max(self.ends)
        keys, values = cache.keys[:, :, :, :longest], cache.values[:, :, :, :longest]
        self.keys, self.values = keys.unbind(), values.unbind()
        self.known: Tensor | None = None
        if min(self.ends) == longest:
            self.new_keys = keys[:, :, :, -1].unbind()
            self.new_values = values[:, :, :, -1].unbind()
        else:
            device = cache.keys.device
            rows = torch.arange(len(new), device=device)  # (B,)
            places = torch.tensor(self.past, device=device)  # (B,)
            every = torch.arange(longest, device=device)  # (S,)
            known = every <= places[:, None, None, None]  # (B, 1, 1, S)
            self.rows, self.places, self.known = rows, places, known

    def positions(self, device: torch.device) -> Tensor:
        spans = zip(self.past, self.ends, strict=True)
        return torch.cat([torch.arange(past, end, device=device) for past, end in spans])

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if max(self.lengths) == 1:
            return self.attend_one_each(layer_idx, q, k, v)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        per_text = zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True)
        seen = []
        for row, (q_new, k_new, v_new) in enumerate(per_text):
            past, end = self.past[row], self.ends[row]
            keys[row, :, past:end] = k_new.transpose(0, 1)
            values[row, :, past:end] = v_new.transpose(0, 1)
            known = (x[row, :, :end].transpose(0, 1) for x in (keys, values))
            seen.append(causal_attention(q_new, *known))
        return torch.cat(seen)

    def attend_one_each(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The common case, one new token a text, for all texts in one call.

        A text's only query may look at every token, so the H / K query heads that share a key head
        stand where several query tokens otherwise would: no key is copied for them.
        """
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.known is None:  # texts of one length; the ends of `keys` and `values`
            self.new_keys[layer_idx].copy_(k)
            self.new_values[layer_idx].copy_(v)
        else:
            keys[self.rows, :, self.places] = k
            values[self.rows, :, self.places] = v
        groups = q.unflatten(1, (k.shape[1], -1))  # (B, K, H // K, E)
        seen = F.scaled_dot_product_attention(
            groups, keys, values, attn_mask=self.known
        )  # (B, K, H // K, E)
        return seen.flatten(1, 2)

    def done(self) -> None:
        """Counts the new tokens as seen."""
        for tokens, new in zip(self.cache.tokens, self.new, strict=True):
            tokens.extend(new)
