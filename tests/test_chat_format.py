"""The ids of the four chat formats are those of the Hub's templates. About 20 seconds."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from hub_templates import (
    HELLO,
    HELLO_IDS,
    NAMES,
    Pair,
    conversations,
    expressible_in,
    load_pair,
)

from data.chat_format import Message, chat_format_of
from data.tokenizer import Tokenizer


def test_llama_3_2_gives_the_hubs_ids_for_5000_conversations(pairs: dict[str, Pair]) -> None:
    """Blank and missing texts, code and U+0085 among them; as training text and as prompt.

    Seen to fail when turns were not trimmed, when the date came from the clock, and when a second
    BOS was put in front.
    """
    pair = pairs["Llama 3.1"]
    sample = conversations(5000, seed=1)
    messages = [[Message(**turn) for turn in conversation] for conversation in sample]
    for prompt in (False, True):
        for conversation, ours in zip(
            sample, pair.ours.render_batch(messages, prompt), strict=True
        ):
            assert ours.ids == pair.hub_ids(conversation, prompt)


@pytest.mark.parametrize("date", ["01 Jan 2025", "29 Feb 2028", "26 July 2024"])
def test_the_date_is_a_setting(pairs: dict[str, Pair], date: str) -> None:
    pair = pairs["Llama 3.1"]
    dated = Pair(chat_format_of(pair.ours.tokenizer, date), pair.theirs)
    for conversation in conversations(200, seed=2):
        assert dated.render(conversation).ids == pair.hub_ids(conversation, date=date)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [False, True])
def test_every_format_gives_the_hubs_ids(pairs: dict[str, Pair], name: str, prompt: bool) -> None:
    """500 conversations whose texts neither begin nor end with a blank.

    Seen to fail when text behind a header got SentencePiece's leading space, and when BOS was put
    in front of ChatML.
    """
    for conversation in conversations(500, seed=3, blank_ends=False):
        if expressible_in(name, conversation):
            ours = pairs[name].render(conversation, prompt)
            assert ours.ids == pairs[name].hub_ids(conversation, prompt)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_hubs_text_whatever_the_blanks(
    pairs: dict[str, Pair], name: str
) -> None:
    """Where an answer begins with a blank, the ids may differ (see `data.chat_format`).

    The text may not. Blanks at the ends of the others' turns do not change the ids either.
    Seen to fail when Llama 3 or Llama 2 did not trim.
    """
    tokenizer = pairs[name].ours.tokenizer
    for conversation in conversations(300, seed=4):
        if expressible_in(name, conversation):
            ours = tokenizer.decode(pairs[name].render(conversation).ids)
            assert ours == tokenizer.decode(pairs[name].hub_ids(conversation))
            for turn in conversation:
                if turn["role"] == "assistant":
                    turn["content"] = "x" + turn["content"]
            assert pairs[name].render(conversation).ids == pairs[name].hub_ids(conversation)


@pytest.mark.parametrize("name", ["Zephyr", "Llama 2"])
def test_a_vocabulary_that_spaces_only_the_very_start_gives_the_hubs_ids(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """As newer libraries save Llama 2's kind: no space after a control token.

    Seen to fail when `spaces_segments` was taken as true.
    """
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    parts = json.loads(file.read_text())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    file.write_text(json.dumps(parts | {"normalizer": None, "pre_tokenizer": metaspace}))
    pair = load_pair(tmp_path)
    for conversation in conversations(300, seed=9, blank_ends=False):
        if expressible_in(name, conversation):
            assert pair.render(conversation).ids == pair.hub_ids(conversation)


def test_llama_3_2_gives_these_66_ids(folders: dict[str, Path]) -> None:
    """A golden example that needs no oracle: made by the Hub's template and Meta's tokenizer."""
    tokenizer = Tokenizer.from_folder(folders["Llama 3.1"])
    messages = [Message(**turn) for turn in HELLO]
    rendered = chat_format_of(tokenizer).render(messages)
    assert rendered.ids == HELLO_IDS
    # The mask, too: the answers' words and their end tokens.
    assert [i for i, by in enumerate(rendered.by_assistant) if by] == [
        *range(37, 45),
        *range(59, 66),
    ]
    assert chat_format_of(tokenizer).render(messages[:3], True).ids == HELLO_IDS[:59]

    other_day = chat_format_of(tokenizer, date="01 Jan 2025").render(messages)
    changed = {(a, b) for a, b in zip(HELLO_IDS, other_day.ids, strict=True) if a != b}
    assert changed == {(1627, 1721), (10263, 4448), (19, 20)}


def test_llama_3_2_trims_each_turn(folders: dict[str, Path]) -> None:
    chat_format = chat_format_of(Tokenizer.from_folder(folders["Llama 3.1"]))
    loose = [Message("user", "  Hi \n"), Message("assistant", "\u0085 Hello. \n")]
    tight = [Message("user", "Hi"), Message("assistant", "Hello.")]
    assert chat_format.render(loose) == chat_format.render(tight)
    assert len(chat_format.render(loose).ids) == 39


def test_odd_orders_are_rendered_as_the_hub_renders_them(pairs: dict[str, Pair]) -> None:
    """All but Llama 2, whose template refuses them."""
    odd = [
        ["assistant"],
        ["user", "user"],
        ["system"],
        ["system", "assistant", "assistant", "user"],
        ["user", "assistant", "assistant"],
    ]
    for roles in odd:
        turns = [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]
        for name in ("Llama 3.1", "Llama 3", "ChatML", "Zephyr"):
            assert pairs[name].render(turns).ids == pairs[name].hub_ids(turns)
        with pytest.raises(ValueError, match=f"user first, not: {', '.join(roles)}$"):
            pairs["Llama 2"].render(turns)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [False, True])
def test_there_is_one_bos_and_it_comes_first(
    pairs: dict[str, Pair], name: str, prompt: bool
) -> None:
    """Llama 2 has one for each exchange, as its template says; SmolLM2 has none at all.

    (What SmolLM2's file calls its BOS is <|im_start|>, which opens every turn.)
    Seen to fail when a BOS was put in front of a template that writes its own.
    """
    for conversation in conversations(300, seed=8):
        if not expressible_in(name, conversation):
            continue
        rendered = pairs[name].render(conversation, prompt)
        if name == "ChatML":
            system = conversation[0]["role"] != "system"
            expected = len(conversation) + system + prompt
        elif name == "Llama 2":
            expected = sum(turn["role"] == "user" for turn in conversation)
        else:
            expected = 1
        bos_id = pairs[name].ours.tokenizer.bos_id
        assert rendered.ids[0] == bos_id
        assert rendered.ids.count(bos_id) == expected
        assert not rendered.by_assistant[0]


def test_the_clock_changes_nothing(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two days, by the clock and by the time zone. Seen to fail when the date was today's."""
    tokenizer = Tokenizer.from_folder(folders["Llama 3.1"])
    messages = [Message(**turn) for turn in HELLO]
    rendered = []
    for seconds, zone in ((1_000_000_000, "AAA-167"), (1_900_000_000, "AAA+167")):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: float(seconds))
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        rendered.append(chat_format_of(tokenizer).render(messages))
    monkeypatch.undo()
    time.tzset()
    assert rendered[0] == rendered[1]
    assert rendered[0].ids == HELLO_IDS


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("Llama 3.1", {128001, 128008, 128009}),
        ("Llama 3", {128001, 128008, 128009}),
        ("ChatML", {0, 2}),
        ("Zephyr", {2}),
        ("Llama 2", {2}),
    ],
)
def test_a_turn_ends_by_an_id_and_never_by_text(
    folders: dict[str, Path], name: str, ends: set[int]
) -> None:
    """Llama 3.2's are those of its generation_config.json.

    Seen to fail when the ids that spell the end token's name also ended a turn.
    """
    tokenizer = Tokenizer.from_folder(folders[name])
    chat_format = chat_format_of(tokenizer)
    assert chat_format.end_ids == ends
    for token_id in ends:
        assert ends.isdisjoint(tokenizer.encode(tokenizer.decode([token_id])))
