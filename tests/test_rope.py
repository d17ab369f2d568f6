"""RoPE's defining properties, and its precision."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import random_tokens, tiny_config, tiny_llama

from model.attention import Packed
from model.config import LlamaConfig
from model.rope import apply_rope, rope_table

CONFIG = LlamaConfig.from_dict(tiny_config(head_dim=64))


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    return apply_rope(x[None, None], rope_table(CONFIG, torch.tensor([position])))[0, 0]


def test_turning_keeps_lengths_and_a_score_depends_on_the_distance_alone():
    q, k = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(turned(q, 777).norm(), q.norm())
    near = turned(q, 12) @ turned(k, 5)
    far = turned(q, 4012) @ turned(k, 4005)
    assert torch.allclose(near, far, rtol=1e-3)
    assert not torch.allclose(near, turned(q, 12) @ turned(k, 6), rtol=1e-2)


def test_position_zero_is_not_turned():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned(x, 0), x)


@pytest.mark.parametrize("position, bound", [(2_048, 2e-4), (131_071, 1e-2)])
def test_the_table_is_as_exact_as_float32_allows(position, bound):
    """Against float64. In bfloat16 the error at 2,048 is above 1: angles off by a radian."""
    cos, sin = rope_table(CONFIG, torch.tensor([position]))
    scaling = CONFIG.rope_scaling
    for pair in range(32):
        speed = CONFIG.rope_theta ** (-2 * pair / 64)
        turns = scaling.original_max_position_embeddings * speed / (2 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        kept = min(max(kept, 0), 1)
        angle = position * ((1 - kept) * speed / scaling.factor + kept * speed)
        assert abs(cos[0, 0, pair].item() - math.cos(angle)) <= bound
        assert abs(sin[0, 0, 32 + pair].item() - math.sin(angle)) <= bound
    assert torch.equal(cos[..., :32], cos[..., 32:]) and torch.equal(sin[..., :32], -sin[..., 32:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_a_model_or_autocast_leaves_the_table_alone(dtype):
    """Seen to fail when the table was made by a matrix product, which autocast rounds."""
    model = tiny_llama()

    def table():
        return torch.stack(rope_table(model.config, torch.arange(5000)))

    tables = [table()]
    model.to(dtype)
    model(random_tokens(9), Packed([9]))
    tables.append(table())
    with torch.autocast("cpu", torch.bfloat16):
        tables.append(table())
    assert all(t.dtype == torch.float32 and torch.equal(t, tables[0]) for t in tables)
