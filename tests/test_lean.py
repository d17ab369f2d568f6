"""The formulas with backward passes of their own: PyTorch's derivatives, and less that is kept.

Seen to fail when a norm's mean was left out of its gradient, when eps was forgotten, when the
gradient of `up` lacked the activation, and when the activation was kept.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu

from model.lean import RMSNormalization, SwiGLU

EPS = 0.1  # large enough to be missed


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    """The formula as PyTorch differentiates it."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPS)
    return weight * normed.to(x.dtype)


FORMULAS = {
    "norm": (lambda x, w: RMSNormalization.apply(x, w, EPS), plain_norm, [(9, 16), (16,)]),
    "swiglu": (SwiGLU.apply, lambda gate, up: silu(gate) * up, [(9, 16), (9, 16)]),
}


def inputs(sizes: list[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [x.to(device, dtype).requires_grad_() for x in made]


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_derivatives_are_pytorchs(name, device):
    own, plain, sizes = FORMULAS[name]
    given = inputs(sizes, torch.float64, device)
    torch.testing.assert_close(own(*given), plain(*given), rtol=0, atol=0)
    slope = torch.randn_like(own(*given))
    mine, theirs = (torch.autograd.grad(f(*given), given, slope) for f in (own, plain))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_in_sixteen_bits_the_values_are_equal_and_no_gradient_is_less_exact(name, dtype, device):
    own, plain, sizes = FORMULAS[name]
    given = inputs(sizes, dtype, device)
    exact = [x.detach().double().requires_grad_() for x in given]
    assert torch.equal(own(*given), plain(*given))
    slope = torch.randn_like(own(*given))
    right = torch.autograd.grad(plain(*exact), exact, slope.double())
    mine, theirs = (torch.autograd.grad(f(*given), given, slope) for f in (own, plain))
    for a, b, c in zip(mine, theirs, right, strict=True):
        assert a.dtype == dtype and (a - c).norm() <= 1.1 * (b - c).norm()


@pytest.mark.parametrize("name", FORMULAS)
def test_only_what_is_there_anyway_is_kept(name):
    own, _, sizes = FORMULAS[name]
    given = inputs(sizes, torch.bfloat16, torch.device("cpu"))
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        own(*given)
    there = {x.data_ptr() for x in given}
    assert sum(t.nbytes for t in kept if t.data_ptr() not in there) <= 4 * 9


def test_a_frozen_weight_gets_no_gradient():
    x, weight = inputs([(9, 16), (16,)], torch.float32, torch.device("cpu"))
    RMSNormalization.apply(x, weight.requires_grad_(False), EPS).sum().backward()
    assert x.grad is not None and weight.grad is None
