"""How a model answers on a CPU: the layers that stand in for those of model/llama.py.

`AnsweringLinear` reads its weight in another order for a token that comes alone (model/columns.py);
the tokens of a prompt pass through the weight as it was loaded: mapped from a file in bfloat16,
held a second time if the file is in another dtype. A prompt's last token is alone in the last
layer's MLP and the head. `AnsweringLayer` is a `DecoderLayer` written flat: with one token every
operation but the products takes longer to call than to compute.

The plain layers are the reference of both. A model that trains, or computes on another device or in
another dtype, keeps them.

Shapes: T tokens in this call, D hidden_size, H query heads, K key/value heads, E head_dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import AttentionPattern
from model.columns import HAS_FBGEMM, Columns, Int8Columns, width_of
from model.config import LlamaConfig
from model.huge_pages import HugePages
from model.linear import FrozenLinear
from model.llama import DecoderLayer, Llama, RMSNorm
from model.rope import apply_rope

# oneDNN compiles a kernel for each number of rows. Rounded up, prompts of all lengths share a few.
FEW_ROWS = 8  # up to which nothing is rounded up
SOME_ROWS, ROWS_AT_A_TIME = 16, 32  # of some answers at once, and of a prompt

Make = Callable[[Tensor, int], Columns | Int8Columns]  # of a weight, in blocks so wide


class AnsweringLinear(nn.Linear):
    """A linear layer that reads its weight's columns for one token, and the weight for several."""

    def __init__(self, linear: nn.Linear, columns: Columns | Int8Columns) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out), in bfloat16."""
        tokens = len(x)
        if tokens == 1:
            return self.columns(x)
        rows = rows_of_kernel(tokens)
        if rows == tokens:
            return F.linear(x, self.weight)
        # What is added does not change the tokens' results.
        return F.linear(F.pad(x, (0, 0, 0, rows - tokens)), self.weight)[:tokens]


class AnsweringLayer(DecoderLayer):
    """`DecoderLayer` for one token, in as few operations as it takes; several go the usual way.

    Args:
        config: the model's.
        layer: the one to stand in for. Its modules become this one's, with other linear layers.
        make: makes the columns of a weight.
    """

    def __init__(self, config: LlamaConfig, layer: DecoderLayer, make: Make) -> None:
        nn.Module.__init__(self)  # DecoderLayer's own would make new weights
        self.input_layernorm = layer.input_layernorm
        self.self_attn = layer.self_attn
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp
        self.heads = config.num_attention_heads, config.num_key_value_heads
        self.qkv = Together(self.self_attn, ("q_proj", "k_proj", "v_proj"), make)
        self.gate_up = Together(self.mlp, ("gate_proj", "up_proj"), make)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        pattern: AttentionPattern,
        wanted: Tensor | None = None,
    ) -> Tensor:
        if len(x) > 1:
            return super().forward(x, rope, pattern, wanted)
        # A token that is alone is the wanted one.
        attention, mlp = self.self_attn, self.mlp
        H, K = self.heads
        qkv = self.qkv(normed(x, self.input_layernorm)).view(1, -1, attention.head_dim)
        qk, v = qkv.split_with_sizes((H + K, K), dim=1)
        q, k = apply_rope(qk, rope).split_with_sizes((H, K), dim=1)
        seen = pattern.attend(attention.layer_idx, q, k, v)  # (T, H, E)
        x = x + attention.o_proj(seen.flatten(1))  # (T, D)
        gate, up = self.gate_up(normed(x, self.post_attention_layernorm)).chunk(2, dim=-1)
        return x + mlp.down_proj(F.silu(gate).mul_(up))


def normed(x: Tensor, norm: RMSNorm) -> Tensor:
    """`norm(x)` for one token, (1, D), in fewer operations: its root mean square is a number."""
    length = torch.linalg.vector_norm(x, dtype=torch.float32).item()
    scale = 1 / math.sqrt(length**2 / x.shape[1] + norm.eps)
    return (x * scale).mul_(norm.weight)


class Together:
    """Linear layers with one input, whose columns a token meets at once.

    Not a module: the layers belong to their owner already.

    Args:
        owner: the module that the layers belong to; they become `AnsweringLinear`s.
        names: what they are called there.
        make: makes their columns.
    """

    def __init__(self, owner: nn.Module, names: Sequence[str], make: Make) -> None:
        self.owner, self.names = owner, names
        self.columns: Columns | Int8Columns | None = None
        self.layers: list[nn.Module | None] = []
        linears = [getattr(owner, name) for name in names]
        sizes = [linear.out_features for linear in linears if is_plain_bf16(linear)]
        if len(sizes) < len(linears) or not (width := width_of(sizes)):
            return
        columns = make(torch.cat([linear.weight.detach() for linear in linears]), width)
        for name, linear, end in zip(names, linears, accumulate(sizes), strict=True):
            part = columns.part(end - linear.out_features, end)
            self.layers.append(AnsweringLinear(linear, part))
            setattr(owner, name, self.layers[-1])
        self.columns = columns

    def __call__(self, x: Tensor) -> Tensor:
        """(1, in) -> (1, outs), one layer's after the other's; around an adapter each is asked."""
        layers = [self.owner._modules[name] for name in self.names]  # getattr takes longer
        if self.columns is not None and layers == self.layers:
            return self.columns(x)
        return torch.cat([getattr(self.owner, name)(x) for name in self.names], dim=-1)


def arrange_for_answers(model: Llama, quantize: str | None = None) -> Llama:
    """Replaces the layers of a model by those that answer fastest on a CPU.

    A linear layer with a bias, with outputs that no blocks suit (`width_of`), or into which an
    adapter was merged stays as it is, and so does a whole model on another device, in another
    dtype, or where PyTorch was built without FBGEMM.

    Args:
        model: in evaluation mode; it cannot be trained afterwards. An adapter may follow, or be
            there already: layers beside an adapted one are then never multiplied at once.
        quantize: None or "int8", as `check_quantize` allows.

    Returns:
        The same model.
    """
    if not (HAS_FBGEMM and is_bf16_on_cpu(model.model.embed_tokens.weight)):
        return model
    kind = Int8Columns if quantize == "int8" else Columns
    make: Make = functools.partial(kind.of, memory=HugePages())
    layers = model.model.layers
    for i, layer in enumerate(layers):
        assert type(layer) is DecoderLayer, "a model is arranged once"
        layers[i] = AnsweringLayer(model.config, layer, make)
    left = [n for n, m in model.named_modules() if type(m) is FrozenLinear]
    for name in left:
        owner, _, attribute = name.rpartition(".")
        parent = model.get_submodule(owner)
        linear = getattr(parent, attribute)
        if is_plain_bf16(linear) and (width := width_of([linear.out_features])):
            columns = make(linear.weight.detach(), width)
            setattr(parent, attribute, AnsweringLinear(linear, columns))
    return model.eval()


def rows_of_kernel(tokens: int) -> int:
    """How many rows the product of so many tokens has."""
    if tokens <= FEW_ROWS:
        return tokens
    at_a_time = SOME_ROWS if tokens <= SOME_ROWS else ROWS_AT_A_TIME
    return -(-tokens // at_a_time) * at_a_time


def is_plain_bf16(layer: nn.Module) -> bool:
    """Whether a layer is nothing but a bfloat16 matrix on a CPU."""
    return type(layer) is FrozenLinear and layer.bias is None and is_bf16_on_cpu(layer.weight)


def is_bf16_on_cpu(weight: Tensor) -> bool:
    """Whether the kernels are for such weights."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16
