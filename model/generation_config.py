"""How to choose tokens and when to stop: what a model's files say, and what its context allows.

Needs no PyTorch, so that wrong settings are refused before it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from model.config import ANOTHER, LlamaConfig, boolean, read_json, token_ids

FILE = "generation_config.json"


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose among the next tokens; the defaults change nothing but the temperature's.

    Where a file sets no top_k, transformers keeps 50 tokens and this keeps all.

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
            "repetition_penalty": (0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100"),
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
        """What the model's generation_config.json recommends; greedy if it does not say.

        Raises:
            ValueError: if the file is not readable, or a setting no number or out of its range.
        """
        path = folder / FILE
        if not path.exists():
            return cls()
        try:
            raw = read_json(path)
            is_sampled = boolean(raw, "do_sample", False)
            names = [field.name for field in fields(cls)] if is_sampled else ["repetition_penalty"]
            given = {name: raw[name] for name in names if raw.get(name) is not None}
            for name, value in given.items():
                kinds = (int,) if name == "top_k" else (int, float)
                if type(value) not in kinds:
                    raise ValueError(f"{name} is {value!r}, not a number")
                given[name] = value if name == "top_k" else float(value)
            return cls(**({"temperature": 1.0} if is_sampled else {}) | given)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: {error}; {ANOTHER}") from None


def stop_ids(folder: Path) -> frozenset[int]:
    """Every token id that ends an answer, by generation_config.json, or else by config.json.

    Empty if neither file names one; the chat format has end tokens of its own.

    Raises:
        ValueError: if a file is not readable, or names something else than ids.
    """
    for path in (folder / FILE, folder / "config.json"):
        try:
            ids = token_ids(read_json(path), "eos_token_id") if path.exists() else ()
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {ANOTHER}") from None
        if ids:
            return frozenset(ids)
    return frozenset()


def room_for(config: LlamaConfig, prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens an answer may have, at most, in the model's context.

    Raises:
        ValueError: if the prompt is empty, holds ids that the model does not have, or leaves no
            room for an answer.
    """
    context = config.max_position_embeddings
    if not prompt:
        raise ValueError("the prompt is empty")
    if max(prompt) >= config.vocab_size:
        raise ValueError(
            f"the prompt has token id {max(prompt)} and the model knows {config.vocab_size:,} ids; "
            "tokenizer and weights do not belong together"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max-new-tokens is {max_new_tokens}; it must be at least 1")
    if len(prompt) >= context:
        raise ValueError(
            f"the prompt has {len(prompt):,} tokens and the model's context holds {context:,}, "
            "the answer included; shorten the prompt"
        )
    return min(max_new_tokens, context - len(prompt))
