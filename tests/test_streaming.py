"""A stream of ids shows whole characters, and in the end all of the text. About 5 seconds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from texts import expressible, random_text, write_small_llama3_tokenizer

from data.tokenizer import Tokenizer

NAMES = ["llama3-tokenizer", "smollm2-135m-instruct", "mistral-v1-tokenizer", "stories260k"]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """What a reader is shown, push by push, and at the end."""
    stream = tokenizer.stream()
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@pytest.mark.parametrize("name", NAMES)
def test_streamed_text_is_the_text_and_never_half_a_character(assets: Path, name: str) -> None:
    """10,000 random texts: joined emoji, many scripts, combining marks, arbitrary code points.

    Seen to fail when each id was decoded by itself (U+FFFD in every emoji), and when only the
    whole decode took SentencePiece's leading space away.
    """
    tokenizer = Tokenizer.from_folder(assets / name)
    rng = random.Random(0)
    texts = [expressible(random_text(rng), name) for _ in range(10_000)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", NAMES)
def test_streamed_ids_that_are_not_valid_utf8_give_what_decode_gives(
    assets: Path, name: str
) -> None:
    """10,000 random sequences, most of them of ids that stand for single bytes or parts.

    Seen to fail when `flush` dropped an unfinished character.
    """
    tokenizer = Tokenizer.from_folder(assets / name)
    rng = random.Random(1)
    broken = unfinished = 0
    for _ in range(10_000):
        highest = rng.choice([300, tokenizer.vocab_size])
        ids = rng.choices(range(highest), k=rng.randrange(12))
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        broken += "\ufffd" in "".join(pieces)
        unfinished += pieces[-1] != ""
    assert broken > 500
    assert unfinished > 100


def test_a_character_appears_with_its_last_byte(tmp_path: Path) -> None:
    """The small vocabulary has no emoji, so that each is four ids, one a byte."""
    tokenizer = Tokenizer.from_folder(write_small_llama3_tokenizer(tmp_path))
    ids = [tokenizer.vocabulary.backend.token_to_id(c) for c in "ðŁĺĢ"]  # F0 9F 98 80
    assert streamed(tokenizer, ids) == ["", "", "", "😀", ""]
    assert streamed(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]


def test_the_leading_space_goes_once(assets: Path) -> None:
    tokenizer = Tokenizer.from_folder(assets / "mistral-v1-tokenizer")
    hello = tokenizer.encode("Hello")
    assert streamed(tokenizer, hello + hello) == ["Hello", " Hello", ""]
