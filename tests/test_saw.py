"""What the model saw, token by token, in all chat formats. Takes 5 seconds.

Seen to fail when a control token was shown in the colour of its turn, when the tokens of half a
character were shown apart, and when the system's turn that a format adds was the user's.
"""

from __future__ import annotations

import random

from hub_templates import Pair
from texts import random_conversation

from app.model_files import open_model
from app.saw import spans_of
from data.chat_format import ChatFormat, Message


def check(chat_format: ChatFormat, messages: list[Message]) -> list[tuple[str, str]]:
    """The kinds and texts of a prompt's spans, once they are sure to make up the prompt."""
    ids = chat_format.render(messages, generation_prompt=True).ids
    spans = spans_of(chat_format, messages, ids)
    assert [token for span in spans for token in span.ids] == ids
    assert "".join(span.text for span in spans) == chat_format.tokenizer.decode(ids)
    control = set(chat_format.tokenizer.control_ids.values())
    for span in spans:
        assert (span.kind == "control") == (span.ids[-1] in control)
        if len(span.ids) > 1 and span.kind != "control":
            assert len(span.text) <= 2 or "�" in span.text, "more than a character in one span"
    return [(span.kind, span.text) for span in spans]


def said_by(spans: list[tuple[str, str]], kind: str) -> str:
    return "".join(text for found, text in spans if found == kind)


def test_every_turn_has_its_own_colour():
    chat_format = open_model("demo").chat_format
    spans = check(
        chat_format,
        [
            Message("system", "Be brief."),
            Message("user", "My name is 🙂 Zoë."),
            Message("assistant", "Hello!"),
            Message("user", "<|eot_id|> in text"),
        ],
    )
    assert said_by(spans, "system").endswith("\n\nBe brief.")
    assert said_by(spans, "user") == "user\n\nMy name is 🙂 Zoë.user\n\n<|eot_id|> in text"
    assert said_by(spans, "assistant") == "assistant\n\nHello!assistant\n\n"
    assert "🙂" in [text for _, text in spans]
    assert said_by(spans, "control").count("<|eot_id|>") == 4


def test_the_system_that_a_format_adds_is_the_system():
    spans = check(open_model("demo").chat_format, [Message("user", "Hi")])
    assert "Cutting Knowledge Date" in said_by(spans, "system")
    assert said_by(spans, "user") == "user\n\nHi"


def test_all_formats_are_shown_whole(pairs: dict[str, Pair]):
    rng = random.Random(0)
    for pair in pairs.values():
        for _ in range(20):
            turns = [Message(**turn) for turn in random_conversation(rng)]
            if turns[-1].role == "assistant":
                turns.pop()
            assert "user" in {kind for kind, _ in check(pair.ours, turns)}


def test_a_prompt_that_ends_in_half_a_character_is_shown():
    chat_format = open_model("demo").chat_format
    ids = [*chat_format.tokenizer.encode("a🙂")[:-1]]
    spans = spans_of(chat_format, [Message("user", "x")], ids)
    assert [token for span in spans for token in span.ids] == ids
    assert spans[-1].text == "�"
