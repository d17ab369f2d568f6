"""The summed cross-entropy against PyTorch's own, in float64 unless said otherwise.

Takes about fifteen seconds, most of them for Llama 3's 128,256 ids.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import random_tokens, tiny_llama
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import MicroBatch
from data.dataset import Example
from model import loss as loss_module
from model.loss import CHUNK, summed_cross_entropy
from train import summed_loss

D, LLAMA_3_VOCAB = 16, 128_256


def problem(count: int, vocab: int, dtype: torch.dtype, seed: int = 0):
    """Hidden states, a head and targets, the highest id among them; losses of up to dozens."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, D, generator=generator).to(dtype).requires_grad_()
    head = (2 * torch.randn(vocab, D, generator=generator)).to(dtype)
    targets = torch.randint(vocab, (count,), generator=generator)
    targets[-1:] = vocab - 1
    return hidden, head, targets


def reference(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of these very logits, computed in float64, and its gradient."""
    hidden = hidden.detach().requires_grad_()
    logits = (hidden @ head.T).double()
    loss = F.cross_entropy(logits, targets, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, hidden)[0]


@pytest.mark.parametrize("vocab", [101, LLAMA_3_VOCAB])
@pytest.mark.parametrize(
    "dtype, loss_bound, gradient_bound",
    [
        (torch.float64, 1e-12, 1e-12),
        (torch.float32, 1e-6, 1e-5),
        (torch.bfloat16, 1e-6, 1e-2),
        (torch.float16, 1e-6, 1e-3),
    ],
    ids=["float64", "float32", "bfloat16", "float16"],
)
def test_loss_and_gradient_are_pytorchs(dtype, loss_bound, gradient_bound, vocab, monkeypatch):
    """Of a model in bfloat16 the loss is exact for the logits that it has.

    Seen to fail when the softmax was computed in the logits' dtype, and when the loss was averaged.
    """
    monkeypatch.setattr(loss_module, "CHUNK", 16)
    hidden, head, targets = problem(37, vocab, dtype)
    got = summed_cross_entropy(hidden, head, targets)
    gradient = torch.autograd.grad(got, hidden)[0]
    wanted, wanted_gradient = reference(hidden, head, targets)
    assert got.item() == pytest.approx(wanted.item(), rel=loss_bound)
    difference = (gradient.double() - wanted_gradient.double()).abs().max()
    assert difference <= gradient_bound * wanted_gradient.abs().max()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 15, 16, 17, 40])
def test_chunks_change_nothing(count, monkeypatch):
    """At every border of chunks of 8. Seen to fail when a chunk began one token late."""
    hidden, head, targets = problem(count, 101, torch.float64)
    monkeypatch.setattr(loss_module, "CHUNK", 8)
    got = summed_cross_entropy(hidden, head, targets)
    gradient = torch.autograd.grad(got, hidden)[0]
    wanted, wanted_gradient = reference(hidden, head, targets)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [1, 8, 13, 31])
def test_fillers_count_for_nothing(count, monkeypatch):
    """Seen to fail when they entered the sum, and when they had a gradient."""
    monkeypatch.setattr(loss_module, "CHUNK", 16)
    hidden, head, targets = problem(count, 101, torch.float64)
    filled = torch.cat([hidden.detach(), torch.ones(-count % 8, D, dtype=torch.float64)])
    got = summed_cross_entropy(filled.requires_grad_(), head, targets)
    gradient = torch.autograd.grad(got, filled)[0]
    wanted, wanted_gradient = reference(hidden, head, targets)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient[:count], wanted_gradient, rtol=1e-12, atol=1e-14)
    assert not gradient[count:].any()


def test_without_targets_the_loss_is_zero_and_so_is_its_gradient():
    hidden = torch.zeros(0, D, requires_grad=True)
    loss = summed_cross_entropy(hidden, torch.zeros(9, D), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and hidden.grad.shape == (0, D)


def test_what_comes_from_above_scales_the_gradient():
    """Division by the number of targets, the loss scale. Seen to fail when it was left out."""
    hidden, head, targets = problem(20, 101, torch.float64)
    (summed_cross_entropy(hidden, head, targets) * 3 / 7).backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, reference(hidden, head, targets)[1] * 3 / 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_comes_from_above_is_not_rounded_to_the_gradients_dtype(dtype):
    """A loss scale of 2^16 would be inf in float16, and a third would lose digits in bfloat16.

    Seen to fail when it was.
    """
    hidden = (0.01 * torch.randn(1, 8)).to(dtype).requires_grad_()
    head, targets = (0.01 * torch.randn(40, 8)).to(dtype), torch.tensor([3])
    (unit,) = torch.autograd.grad(summed_cross_entropy(hidden, head, targets), hidden)
    for factor in (65536.0, 1 / 3):
        loss = summed_cross_entropy(hidden, head, targets) * factor
        (scaled,) = torch.autograd.grad(loss, hidden)
        assert torch.equal(scaled, (unit.float() * factor).to(dtype))


def test_the_gradient_is_that_of_finite_differences():
    hidden, head, targets = problem(5, 11, torch.float64)
    assert torch.autograd.gradcheck(lambda h: summed_cross_entropy(h, head, targets), (hidden,))


def test_logits_beyond_exps_range_are_no_trouble():
    """Scores of thousands, as a damaged model has them."""
    hidden, head, targets = problem(9, 101, torch.float32)
    big = (hidden.detach() * 1000).requires_grad_()
    loss = summed_cross_entropy(big, head, targets)
    loss.backward()
    assert loss.item() == pytest.approx(reference(big, head, targets)[0].item(), rel=1e-6)
    assert big.grad is not None and big.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_logits_exist_for_one_chunk_at_a_time():
    """In both passes. Seen to fail when all logits were computed first."""
    hidden, head, targets = problem(3 * CHUNK, 5003, torch.float32)
    with LargestTensor() as largest:
        summed_cross_entropy(hidden, head, targets).backward()
    assert largest.elements == CHUNK * 5003


def lookup_model(vocab_size: int):
    """A model that is certain that the token after t is t + 1, whatever came before."""
    model = tiny_llama(vocab_size=vocab_size, hidden_size=64, tie_word_embeddings=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(vocab_size, 64))
        model.lm_head.weight.copy_(100 * torch.eye(vocab_size, 64).roll(1, 0))
    return model


def test_targets_are_shifted_once():
    """Seen to fail when they were not shifted."""
    counting = [Example(torch.arange(a, b).numpy().astype("<u4"), torch.ones(b - a).bool().numpy())
                for a, b in ((3, 20), (40, 60), (7, 9))]  # fmt: skip
    batch = MicroBatch.of(counting)
    assert len(batch.targets) == 16 + 19 + 1  # none from one conversation to the next
    with torch.no_grad():
        assert summed_loss(lookup_model(64), batch).item() < 1e-6


def test_the_loss_is_that_of_transformers():
    """Its own shift and its own ignoring of labels, in float32."""
    transformers = pytest.importorskip("transformers")
    from conftest import tiny_config

    model = tiny_llama()
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny_config())).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    tokens = random_tokens(40)
    is_target = random_tokens(40, seed=1) % 3 == 0
    is_target[0] = True  # which is never a target
    labels = torch.where(is_target, tokens, -100)
    example = Example(tokens.numpy().astype("<u4"), is_target.numpy())
    batch = MicroBatch.of([example])
    with torch.no_grad():
        wanted = theirs(input_ids=tokens[None], labels=labels[None]).loss.item()
        got = summed_loss(model, batch).item() / len(batch.targets)
    assert got == pytest.approx(wanted, rel=1e-5)
