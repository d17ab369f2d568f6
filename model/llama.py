"""Llama: the forward pass, in the order in which data flows through it. Read it from the top.

RMSNorm -> Attention -> MLP -> DecoderLayer -> LlamaModel -> Llama. Classes and attributes have
Hugging Face's names, so the parameters are called what the checkpoints call them, and LoRA's
targets what everybody calls them.

There is no batch dimension. All tokens of all texts stand in one flat stream, and an attention
pattern (`model/attention.py`) says which of them belong together; every other operation works on
each token by itself.

Take `apply_rope` and the pattern's `attend` on trust at first: model/rope.py and
model/attention.py explain them. `RMSNormalization` and `SwiGLU` are the formulas that stand beside
them; model/lean.py spells them out, with their derivatives. `FrozenLinear` is `nn.Linear` without a
bias; model/linear.py says why it has a name of its own.

Shapes, in every trailing comment (a test executes them):

    T tokens in this call    D hidden_size    F intermediate_size    V vocab_size
    H query heads            K key/value heads                       E head_dim
    B rows of a padded batch
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import AttentionPattern, Packed
from model.config import LlamaConfig
from model.lean import RMSNormalization, SwiGLU
from model.linear import FrozenLinear
from model.rope import apply_rope, rope_table


class RMSNorm(nn.Module):
    """Scales each token's vector to root-mean-square 1, then each feature by its weight.

        weight * x / sqrt(mean(x^2) + eps)

    Zhang & Sennrich, arXiv:1910.07467, section 4. Computed in float32 or better.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = RMSNormalization.apply(x, self.weight, self.eps)  # (T, D)
        return normed


class Attention(nn.Module):
    """Each token gathers from those that it may see; H query heads share K <= H key/value heads."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.layer_idx = layer_idx
        self.head_dim = E
        self.q_proj = FrozenLinear(D, H * E)
        self.k_proj = FrozenLinear(D, K * E)
        self.v_proj = FrozenLinear(D, K * E)
        self.o_proj = FrozenLinear(H * E, D)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], pattern: AttentionPattern) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (T, H, E)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (T, K, E)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (T, K, E)
        q = apply_rope(q, rope)  # (T, H, E)
        k = apply_rope(k, rope)  # (T, K, E)
        seen = pattern.attend(self.layer_idx, q, k, v)  # (T, H, E)
        return self.o_proj(seen.flatten(1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Shazeer, arXiv:2002.05202, section 2."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = FrozenLinear(size, inner)
        self.up_proj = FrozenLinear(size, inner)
        self.down_proj = FrozenLinear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gated(x))

    def gated(self, x: Tensor) -> Tensor:
        """The widest part of a layer, apart so that it can be recomputed."""
        gated = SwiGLU.apply(self.gate_proj(x), self.up_proj(x))  # (T, F)
        return gated


class DecoderLayer(nn.Module):
    """Attention between tokens, then an MLP within each; both read a normed copy and add to `x`."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        pattern: AttentionPattern,
        wanted: Tensor | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, pattern)  # (T, D)
        if wanted is not None:  # from here on no token needs another
            x = x.index_select(0, wanted)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Token ids in, one vector per token out."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        # Uniform: on the meta device nn.Embedding's own normal start takes a second to import.
        start = torch.empty(config.vocab_size, config.hidden_size).uniform_(-0.05, 0.05)  # (V, D)
        self.embed_tokens = nn.Embedding.from_pretrained(start, freeze=False)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, tokens: Tensor, pattern: AttentionPattern, wanted: Tensor | None = None
    ) -> Tensor:
        """What the head reads: (T,) int64 ids -> (T, D), normed, in the dtype of the weights.

        With `wanted`, int64 places in the stream, only of these tokens: the last layer is spared
        what nobody would look at.
        """
        x = self.embed_tokens(tokens)  # (T, D)
        rope = rope_table(self.config, pattern.positions(tokens.device))
        for layer in self.layers[:-1]:
            x = layer(x, rope, pattern)  # (T, D)
        return self.norm(self.layers[-1](x, rope, pattern, wanted))


class Llama(nn.Module):
    """Token ids in, a score for every possible next token out.

    `lm_head` is apart from `model` so that callers pay for the logits that they need: the last
    token's in generation, those with a target in training. A tied head is the embedding itself.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = FrozenLinear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, pattern: AttentionPattern) -> Tensor:
        """Logits for the successor of every token: (T,) int64 -> (T, V), in the weights' dtype."""
        hidden = self.model(tokens, pattern)  # (T, D)
        logits = self.lm_head(hidden)  # (T, V)
        return logits

    def forward_padded(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """The same for a rectangular batch, by leaving its padding out of the stream.

        Args:
            tokens: int64 ids, (B, T); what stands where the mask is false does not matter.
            attention_mask: bool, (B, T), true for real tokens; padding may be on either side, and
                a row may be nothing else.

        Returns:
            Logits, (B, T, V); zero at padding.
        """
        assert attention_mask.dtype == torch.bool, "numbers would be taken for row indices"
        dtype = self.lm_head.weight.dtype
        logits = torch.zeros(
            *tokens.shape, self.config.vocab_size, dtype=dtype, device=tokens.device
        )  # (B, T, V)
        lengths = [n for n in attention_mask.sum(dim=1).tolist() if n > 0]
        if lengths:
            logits[attention_mask] = self(tokens[attention_mask], Packed(lengths))
        return logits
