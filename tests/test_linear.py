"""Frozen linear maps: PyTorch's own, in both directions, by whichever library computes them.

Seen to fail when the gradient was that of the transposed weight, and when PyTorch computed it; when
oneDNN was given another weight; when the weight's size was not asked for; and when a trained weight
got no gradient.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import model.linear
from model.linear import FrozenLinear, FrozenProduct, suits_onednn

LARGE, SMALL = (33, 640, 512), (7, 12, 20)


@pytest.mark.parametrize("shape", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_it_is_a_linear_map_in_both_directions(shape, dtype, device):
    """Bit-equal where PyTorch computes it, else as close as the order of a sum allows."""
    T, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x, weight, slope = (
        torch.randn(size, generator=generator).to(device, dtype)
        for size in [(T, inputs), (outputs, inputs), (T, outputs)]
    )
    x.requires_grad_()
    ours, theirs = FrozenProduct.apply(x, weight), F.linear(x, weight)
    ours = [ours, *torch.autograd.grad(ours, x, slope)]
    theirs = [theirs, *torch.autograd.grad(theirs, x, slope)]
    bound = 2e-6 if suits_onednn(x, weight) else 0.0
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= bound * other.norm()


def test_onednn_takes_large_frozen_products_in_float32_only(monkeypatch):
    x, weight = torch.zeros(LARGE[0], LARGE[1]), torch.zeros(LARGE[2], LARGE[1])
    assert suits_onednn(x, weight)
    assert not suits_onednn(x[:31], weight)
    assert not suits_onednn(x, weight[:400])
    assert not suits_onednn(x.double(), weight.double())
    assert not suits_onednn(x.bfloat16(), weight.bfloat16())
    assert not suits_onednn(x.to("meta"), weight.to("meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not suits_onednn(x, weight)


def test_both_directions_go_through_onednn(monkeypatch):
    """Also through a transposed weight, for which nothing is copied."""
    calls = []
    real = model.linear.product
    monkeypatch.setattr(
        model.linear, "product", lambda x, w: (calls.append(suits_onednn(x, w)), real(x, w))[1]
    )
    layer = FrozenLinear(640, 512).requires_grad_(False)
    layer(torch.randn(33, 640, requires_grad=True)).sum().backward()
    assert calls == [True, True]


def test_a_trained_weight_gets_its_gradient():
    layer = FrozenLinear(640, 512)
    x = torch.randn(33, 640)
    layer(x).square().sum().backward()
    wanted = 2 * F.linear(x, layer.weight).T @ x
    torch.testing.assert_close(layer.weight.grad, wanted.detach(), rtol=1e-4, atol=1e-3)
