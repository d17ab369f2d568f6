"""Which token comes next: from scores to a choice.

Greedy decoding takes the likeliest token every time. Sampling draws one, and a `SamplingConfig`
says how far from the likeliest it may stray. Its settings apply in the order in which it lists
them, which is transformers' order, so that numbers from a model card mean what they mean there.

Shapes: V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from model.generation_config import SamplingConfig


class Sampler:
    """Chooses the tokens of one text; its random numbers and its memory are its own.

    Args:
        config: the settings.
        seed: fixes the choices, on one kind of device.
        device: where the scores will be.
    """

    def __init__(
        self, config: SamplingConfig, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.generator = torch.Generator(device).manual_seed(seed)

    def choose(self, logits: Tensor, seen: Iterable[int]) -> Tensor:
        """One token id, an int64 tensor without dimensions.

        Args:
            logits: scores of the next token, (V,).
            seen: the ids that the text holds so far, prompt and answer; only a repetition penalty
                looks at them.

        Raises:
            ValueError: if a score is not a number, or if one is infinitely high.
        """
        logits = logits.float()  # (V,)
        if not torch.isfinite(logits.max()):  # which is NaN if any of them is
            raise ValueError(
                "the model's scores are not finite: its weights or the adapter are damaged, or too "
                "large for the dtype; try --dtype fp32"
            )
        if self.config.repetition_penalty != 1:
            logits = penalised(logits, seen, self.config.repetition_penalty)
        if self.config.temperature == 0:
            return logits.argmax()
        # The best score becomes 0, which no temperature, however small, turns into infinity.
        temperature = max(self.config.temperature, torch.finfo(torch.float32).tiny)
        kept = filtered((logits - logits.max()) / temperature, self.config)  # (V,)
        return torch.multinomial(kept.softmax(-1), 1, generator=self.generator)[0]


def penalised(logits: Tensor, seen: Iterable[int], penalty: float) -> Tensor:
    """`logits` (V,) with those of `seen` made less likely by `penalty`."""
    ids = torch.tensor(sorted(set(seen)), dtype=torch.int64, device=logits.device)
    scores = logits[ids]
    return logits.index_put((ids,), torch.where(scores < 0, scores * penalty, scores / penalty))


def filtered(logits: Tensor, config: SamplingConfig) -> Tensor:
    """`logits` (V,) with all but the tokens that top_k, top_p and min_p keep at -inf."""
    if 0 < config.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(config.top_k).values[-1], -math.inf)
    if config.top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities  # (V,)
        dropped = before >= config.top_p  # (V,)
        dropped[0] = False  # a top_p too small for float32 still leaves the likeliest
        logits = logits.index_fill(0, order[dropped], -math.inf)
    if config.min_p > 0:
        probabilities = logits.softmax(-1)  # (V,)
        unlikely = probabilities < config.min_p * probabilities.max()  # (V,)
        logits = logits.masked_fill(unlikely, -math.inf)
    return logits
