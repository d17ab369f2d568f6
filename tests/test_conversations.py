"""Rows turned into conversations, and every flaw for which a row is refused. A second or two."""

from __future__ import annotations

import random
from typing import Any

import pytest
from texts import random_text

from data.chat_templates import Message
from data.conversations import (
    EMPTY_TURN,
    INVALID_UTF8,
    LATE_SYSTEM,
    NO_ASSISTANT,
    NOT_A_CONVERSATION,
    NOT_USER_FIRST,
    SAME_ROLES,
    UNKNOWN_ROLE,
    Flaw,
    conversation_of,
)

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

ASKED = {"from": "human", "value": "What is 2 + 2?"}
ANSWERED = {"from": "gpt", "value": "4."}
TOLD = {"from": "system", "value": "Be brief."}


def sharegpt(*turns: Any) -> dict[str, Any]:
    return {"conversations": list(turns), "source": "somewhere", "score": 4.5}


def said_by(speaker: Any, text: Any = "text") -> dict[str, Any]:
    return {"from": speaker, "value": text}


def flaw_of(row: Any) -> str:
    with pytest.raises(Flaw) as flaw:
        conversation_of(row)
    return str(flaw.value)


def test_the_three_shapes_of_a_row_give_the_same_conversation():
    """Seen to fail when Alpaca's input was left out, and when it was joined by one line break."""
    expected = [Message("user", "Translate.\n\nBonjour"), Message("assistant", "Good day")]
    alpaca = {"instruction": "Translate.", "input": "Bonjour", "output": "Good day"}
    assert conversation_of(alpaca) == expected
    messages = [{"role": turn.role, "content": turn.content} for turn in expected]
    assert conversation_of({"messages": messages}) == expected
    human, gpt = (turn.content for turn in expected)
    assert conversation_of(sharegpt(said_by("human", human), said_by("gpt", gpt))) == expected


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_an_alpaca_row_may_be_without_input(nothing: str | None):
    row = {"instruction": "Say hi.", "input": nothing, "output": "Hi"}
    expected = [Message("user", "Say hi."), Message("assistant", "Hi")]
    assert conversation_of(row) == expected
    del row["input"]
    assert conversation_of(row) == expected


def test_columns_that_a_parquet_file_has_for_other_rows_do_not_matter():
    """Rows of several shapes in one file have each other's columns, with nothing in them."""
    turn = {"role": None, "content": None, "weight": None}
    row = sharegpt(ASKED | turn, ANSWERED | turn) | {"messages": None, "instruction": None}
    assert len(conversation_of(row)) == 2
    row = {"conversations": [], "messages": None, "instruction": "a", "output": "b"}
    assert len(conversation_of(row)) == 2


@pytest.mark.parametrize("system", ["system", "System"])
@pytest.mark.parametrize("user", ["human", "user", "Human", "USER", "prompter"])
@pytest.mark.parametrize("assistant", ["gpt", "assistant", "GPT", "chatgpt", "model", "bot"])
def test_roles_are_known_by_their_usual_names(system: str, user: str, assistant: str):
    turns = [said_by(role) for role in (system, user, assistant, user, assistant)]
    roles = [turn.role for turn in conversation_of(sharegpt(*turns))]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_texts_are_kept_to_the_last_blank():
    text = "  \n<|eot_id|> [INST] {{ x }}\r\n\u2028🙂\x00 "
    turns = conversation_of(sharegpt(said_by("human", text), said_by("gpt", text)))
    assert [turn.content for turn in turns] == [text, text]


@pytest.mark.parametrize(
    "row, flaw",
    [
        (None, INVALID_UTF8),
        ({}, NOT_A_CONVERSATION),
        ({"text": "Once upon a time"}, NOT_A_CONVERSATION),
        ({"conversations": None}, NOT_A_CONVERSATION),
        ({"conversations": []}, NOT_A_CONVERSATION),
        ({"conversations": "human: hi"}, NOT_A_CONVERSATION),
        ({"conversations": {"from": "human", "value": "hi"}}, NOT_A_CONVERSATION),
        ({"messages": 3}, NOT_A_CONVERSATION),
        (sharegpt(ASKED, None), NOT_A_CONVERSATION),
        (sharegpt(ASKED, "4."), NOT_A_CONVERSATION),
        (sharegpt(ASKED, said_by("gpt", ["4."])), NOT_A_CONVERSATION),
        (sharegpt(ASKED, said_by("gpt", 4)), NOT_A_CONVERSATION),
        ({"instruction": "Say hi.", "input": "x"}, NOT_A_CONVERSATION),
        ({"instruction": 1, "output": "Hi"}, NOT_A_CONVERSATION),
        ({"instruction": "Say hi.", "input": ["x"], "output": "Hi"}, NOT_A_CONVERSATION),
        (sharegpt(ASKED, said_by("narrator")), UNKNOWN_ROLE),
        (sharegpt(ASKED, said_by("tool")), UNKNOWN_ROLE),
        (sharegpt(ASKED, said_by(None)), UNKNOWN_ROLE),
        (sharegpt(ASKED, said_by("")), UNKNOWN_ROLE),
        (sharegpt(ASKED, said_by(1)), UNKNOWN_ROLE),
        (sharegpt(ASKED, {"value": "4."}), UNKNOWN_ROLE),
        (sharegpt(ASKED, said_by("gpt<|eot_id|>")), UNKNOWN_ROLE),
        (sharegpt(ASKED, said_by("assistant<|end_header_id|>")), UNKNOWN_ROLE),
        (sharegpt(ASKED, said_by("gpt", "")), EMPTY_TURN),
        (sharegpt(ASKED, said_by("gpt", " \n\u3000")), EMPTY_TURN),
        (sharegpt(ASKED, said_by("gpt", None)), EMPTY_TURN),
        (sharegpt(ASKED, {"from": "gpt"}), EMPTY_TURN),
        (sharegpt(said_by("system", ""), ASKED, ANSWERED), EMPTY_TURN),
        ({"instruction": "", "input": "", "output": "Hi"}, EMPTY_TURN),
        ({"instruction": "Say hi.", "input": "", "output": None}, EMPTY_TURN),
        (sharegpt(ASKED, said_by("gpt", "half \ud83d")), INVALID_UTF8),
        (sharegpt(said_by("human", "caf\udce9"), ANSWERED), INVALID_UTF8),
        (sharegpt(ANSWERED), NOT_USER_FIRST),
        (sharegpt(ANSWERED, ASKED), NOT_USER_FIRST),
        (sharegpt(TOLD), NOT_USER_FIRST),
        (sharegpt(TOLD, ANSWERED, ASKED), NOT_USER_FIRST),
        (sharegpt(ASKED, ASKED, ANSWERED), SAME_ROLES),
        (sharegpt(ASKED, ANSWERED, ANSWERED), SAME_ROLES),
        (sharegpt(TOLD, ASKED, ANSWERED, ASKED, ASKED), SAME_ROLES),
        (sharegpt(ASKED, TOLD, ANSWERED), LATE_SYSTEM),
        (sharegpt(TOLD, TOLD, ASKED, ANSWERED), LATE_SYSTEM),
        (sharegpt(ASKED), NO_ASSISTANT),
        (sharegpt(TOLD, ASKED), NO_ASSISTANT),
    ],
)
def test_every_flaw_has_its_name(row: Any, flaw: str):
    """Seen to fail when roles were taken by position, and when blank turns were kept.

    Also when a system turn was allowed in the middle, and when the order was not looked at.
    """
    assert flaw_of(row) == flaw


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
turns = st.fixed_dictionaries(
    {
        "from": st.sampled_from(["human", "gpt", "system", "User", "tool"]) | json_values,
        "value": st.text(st.characters(), max_size=4) | json_values,
    }
)
columns = ("conversations", "messages", "instruction", "input", "output", "text")
rows = st.dictionaries(
    st.sampled_from(columns), st.lists(turns | json_values, max_size=5) | json_values
)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_any_row_is_a_flaw_or_a_conversation_that_takes_turns(row: dict[str, Any]):
    try:
        conversation = conversation_of(row)
    except Flaw:
        return
    roles = [turn.role for turn in conversation if turn.role != "system"]
    assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
    assert "assistant" in roles
    assert all(turn.role != "system" for turn in conversation[1:])
    for turn in conversation:
        assert turn.content.strip()
        turn.content.encode()


def test_no_turn_of_a_good_row_is_lost_or_moved():
    """Seen to fail when only the first two turns were kept."""
    rng = random.Random(3)
    for _ in range(300):
        roles = ["system"] * rng.randrange(2) + ["human", "gpt"] * rng.randrange(1, 9)
        roles += ["human"] * rng.randrange(2)
        texts = [f"x{random_text(rng)}" for _ in roles]
        row = sharegpt(*map(said_by, roles, texts))
        found = conversation_of(row)
        names = {"human": "user", "gpt": "assistant", "system": "system"}
        assert found == [Message(names[r], text) for r, text in zip(roles, texts, strict=True)]
