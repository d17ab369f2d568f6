"""Data files, a small tokenizer and token files: what the tests of data sets share."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from texts import random_text, write_small_llama3_tokenizer

from data.chat_format import ChatFormat, chat_format_of
from data.dataset import Conversations, tokenize
from data.report import DataReport
from data.sources import Source
from data.tokenizer import Tokenizer

# Rows with one flaw each, in the shape of FineTome; the reasons are those of data.json.
GOOD = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
FLAWED = {
    "not a conversation": {"text": "Hi"},
    "unknown role": {"conversations": [{"from": "alien", "value": "Hi"}]},
    "empty turn": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt"}]},
    "invalid UTF-8": {"conversations": [{"from": "human", "value": "\ud83d"}]},
    "first turn not a user's": {"conversations": [{"from": "gpt", "value": "Hi"}]},
    "two same roles in a row": {"conversations": [{"from": "human", "value": "Hi"}] * 2},
    "system turn not first": {
        "conversations": [*GOOD["conversations"], {"from": "system", "value": "Hi"}]
    },
    "no assistant turn": {"conversations": [{"from": "human", "value": "Hi"}]},
}


def small_chat_format(folder: Path, **settings: Any) -> ChatFormat:
    """Llama 3's format over a vocabulary of 400 ids."""
    return chat_format_of(Tokenizer.from_folder(write_small_llama3_tokenizer(folder)), **settings)


def random_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations that are all right: with a system turn or not, 1 to 4 exchanges."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        turns = [{"from": "system", "value": f"x{random_text(rng)}"}] * rng.randrange(2)
        for _ in range(rng.randrange(1, 5)):
            turns.append({"from": "human", "value": f"{number} {random_text(rng)}"})
            turns.append({"from": "gpt", "value": f"{random_text(rng)}."})
        rows.append({"conversations": turns})
    return rows


def write_jsonl(path: Path, rows: Sequence[Any]) -> Source:
    """A source of one .jsonl file with these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path), (path,), None)


def made(source: Source, chat_format: ChatFormat, cache: Path) -> tuple[Conversations, DataReport]:
    """The token files of a source, cut at 100 tokens, made or found in `cache`."""
    return tokenize(source, chat_format, 100, "assistant", cache)


def content(conversations: Conversations) -> list[bytes]:
    """All that the arrays of a data set hold."""
    names = ("tokens", "targets", "lengths", "target_counts", "digests")
    return [np.asarray(getattr(conversations, name)).tobytes() for name in names]


def entries(cache: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in cache.iterdir())
