"""Which token comes next: from scores to a choice.

Greedy decoding takes the likeliest token every time. Sampling draws one, and these settings say
how far from the likeliest it may stray. They apply in the order in which they are listed here,
which is transformers' order, so that numbers from a model card mean what they mean there.

Shapes: V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import read_json, token_ids


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose among the next tokens; the defaults change nothing but the temperature's.

    Attributes:
        repetition_penalty: what scores of tokens that already occurred are divided by (multiplied,
            if negative); 1 leaves them alone. Keskar et al., "CTRL", arXiv:1909.05858, section 4.1.
        temperature: what scores are divided by: below 1 sharpens, above 1 flattens, 0 is greedy.
        top_k: keep only the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest tokens that have this much probability together. Holtzman et al.,
            "The Curious Case of Neural Text Degeneration", arXiv:1904.09751.
        min_p: keep tokens at least this fraction as likely as the likeliest.

    Raises:
        ValueError: if a setting is out of its range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
            "temperature": (0 <= self.temperature < math.inf, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
        }
        for name, (is_valid, allowed) in ranges.items():
            if not is_valid:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {allowed}")

    @classmethod
    def from_folder(cls, folder: Path) -> SamplingConfig:
        """What the model's generation_config.json recommends; greedy if it does not say."""
        raw = generation_config(folder)
        if not raw.get("do_sample"):
            return cls(repetition_penalty=raw.get("repetition_penalty") or 1.0)
        given = {name: raw[name] for name in cls.__annotations__ if raw.get(name) is not None}
        return cls(**({"temperature": 1.0} | given))


def generation_config(folder: Path) -> dict:
    """The content of generation_config.json; empty if there is none.

    Raises:
        ValueError: if it is there and not readable.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def stop_ids(folder: Path) -> frozenset[int]:
    """Every token id that ends an answer, by generation_config.json, or else by config.json.

    Raises:
        ValueError: if neither file names one, since generation would then never stop.
    """
    raw = generation_config(folder)
    ids = token_ids(raw, "eos_token_id") or token_ids(
        read_json(folder / "config.json"), "eos_token_id"
    )
    if not ids:
        raise ValueError(f"{folder}: neither generation_config.json nor config.json has an eos id")
    return frozenset(ids)


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
            seen: the ids that the text holds so far, prompt and answer.
        """
        if self.config.repetition_penalty != 1:
            logits = penalised(logits, seen, self.config.repetition_penalty)
        if self.config.temperature == 0:
            return logits.argmax()
        kept = filtered(logits.float() / self.config.temperature, self.config)  # (V,)
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
        logits = logits.index_fill(0, order[before >= config.top_p], -math.inf)
    if config.min_p > 0:
        probabilities = logits.softmax(-1)  # (V,)
        unlikely = probabilities < config.min_p * probabilities.max()  # (V,)
        logits = logits.masked_fill(unlikely, -math.inf)
    return logits
