"""The loss: how surprised the model is by the tokens it should have written.

For one target token y with logits z over the vocabulary, in nats:

    loss  =  -log softmax(z)[y]  =  log(sum_v exp z[v])  -  z[y]

Llama 3's vocabulary has 128,256 entries. Logits for 4,000 tokens in float32 would fill 2 GB, and
their gradient as much again. So they exist for one chunk of tokens at a time: the chunk's loss and
its gradient towards the hidden states are computed together, and the logits are dropped before the
next chunk. That is possible because the loss is the last thing computed, and because the head is
frozen: nobody asks for the head's gradient.

Shapes: N target tokens (only those get logits), M with fillers, D hidden_size, V vocab_size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.linear import product

CHUNK = 256  # target tokens; 128,256 logits in float32 for each are 130 MB


def summed_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the targets; softmax in float32 or better.

    Args:
        hidden: (M, D), what the head reads at each token *before* a target. Rows after the N-th
            are fillers: they count for nothing, and some numbers of rows are multiplied faster.
        head: (V, D), the frozen weight of `lm_head`.
        targets: (N,), int64 ids. N may be 0, and the sum is then 0.

    Returns:
        A scalar. Its gradient reaches `hidden` and nothing else.
    """
    return SummedCrossEntropy.apply(hidden, head, targets, hidden.requires_grad)


class SummedCrossEntropy(torch.autograd.Function):
    """Computes the gradient on the way forward, while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, needs_gradient: bool
    ) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        gradient = torch.zeros_like(hidden) if needs_gradient else None
        # One place for all chunks: to be given new memory takes longer than to fill it.
        scores = hidden.new_empty(min(CHUNK, len(hidden)), len(head), dtype=exact)
        for start in range(0, len(targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            count = len(targets[chunk])  # the last chunk's fillers stand behind
            logits = product(hidden[chunk], head)
            largest = logits.amax(dim=1, keepdim=True).to(exact)
            at_target = logits.gather(1, targets[chunk, None]).to(exact)
            shares = scores[: len(logits)].copy_(logits).sub_(largest).exp_()
            sums = shares.sum(dim=1, keepdim=True)
            total += ((sums.log() + largest)[:count] - at_target).sum()
            if gradient is not None:
                # d loss / d z = softmax(z), less 1 at the target; and z = head @ hidden.
                expected = product(logits.copy_(shares), head.T).div_(sums)
                gradient[chunk][:count] = expected[:count] - head[targets[chunk]]
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return ctx.gradient * upstream, None, None, None
