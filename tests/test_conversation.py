"""What of a chat the model is given, and what of it can be learnt from. Takes 2 seconds.

Seen to fail when the newest exchange was left out first, when the system prompt was left out with
the history, when a question was left without its answer, when an answer that was stopped or rated
down went among the rows, when an answer without history shared its row with the others, and when
conversations grew without end.
"""

from __future__ import annotations

import json
import random

import pytest
from texts import random_text

from app.conversation import (
    MOST_CHARACTERS,
    MOST_EXCHANGES,
    Answer,
    Conversation,
    Exchange,
    prompt_that_fits,
)
from app.model_files import open_model
from app.training_rows import AFTER_A_GAP, as_jsonl, training_rows
from data.chat_format import ChatFormat, Message
from data.conversations import conversation_of


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    return open_model("demo").chat_format


def answered(question: str, text: str, **more) -> Exchange:
    more = {"with_history": True, "state": "done", "saw": (Message("user", question),)} | more
    return Exchange(question, Answer(by="one", model="demo", text=text, **more))


def pairs(*texts: str) -> list[tuple[Message, Message]]:
    return [
        (Message("user", question), Message("assistant", text))
        for question, text in zip(texts[::2], texts[1::2], strict=True)
    ]


def test_a_prompt_is_the_longest_that_fits_whole_turns_only(chat_format):
    rng = random.Random(0)
    most_left_out = 0
    for _ in range(300):
        system = rng.choice(["", "  ", "Be brief.", random_text(rng)])
        history = pairs(*(random_text(rng) or "x" for _ in range(2 * rng.randrange(8))))
        question = random_text(rng) or "x"
        opening = [Message("system", system)] if system.strip() else []

        def ids_of(
            kept: list[tuple[Message, Message]], opening=opening, question=question
        ) -> list[int]:
            turns = [turn for exchange in kept for turn in exchange]
            messages = [*opening, *turns, Message("user", question)]
            return chat_format.render(messages, generation_prompt=True).ids

        shortest, room = len(ids_of([])), rng.randrange(20, 400)
        if shortest > room:
            with pytest.raises(ValueError, match=f"have {shortest:,} tokens, and {room:,} fit"):
                prompt_that_fits(chat_format, system, history, Message("user", question), room)
            continue
        prompt = prompt_that_fits(chat_format, system, history, Message("user", question), room)
        assert prompt.ids == ids_of(history[prompt.left_out :]) and len(prompt.ids) <= room
        roles = [message.role for message in prompt.messages[len(opening) :]]
        assert list(prompt.messages[: len(opening)]) == opening
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        if prompt.left_out:
            assert len(ids_of(history[prompt.left_out - 1 :])) > room, "more would have fitted"
        most_left_out = max(most_left_out, prompt.left_out)
    assert most_left_out > 3


def test_without_history_the_ids_are_those_of_a_fresh_chat(chat_format):
    fresh = chat_format.render(
        [Message("system", "Be brief."), Message("user", "Hi")], generation_prompt=True
    )
    prompt = prompt_that_fits(chat_format, "Be brief.", [], Message("user", "Hi"), 500)
    assert prompt.ids == fresh.ids


def test_history_holds_what_was_answered_whoever_stopped_it():
    chat = Conversation(
        [
            answered("a", "A"),
            answered("b", "B and", state="stopped"),
            answered("c", "  ", state="stopped"),
            answered("d", "", state="failed", trouble="no memory"),
            answered("e", "E", state="cut"),
            Exchange("f"),
        ]
    )
    said = [(user.content, reply.content) for user, reply in chat.history(by_base=False)]
    assert said == [("a", "A"), ("b", "B and"), ("e", "E")]


def test_each_side_of_a_comparison_goes_on_with_its_own_words():
    both = answered("a", "tuned")
    both.base_answer = answered("a", "base").answer
    chat = Conversation([both, answered("b", "tuned again"), Exchange("c")])
    assert [reply.content for _, reply in chat.history(by_base=False)] == ["tuned", "tuned again"]
    assert [reply.content for _, reply in chat.history(by_base=True)] == ["base", "tuned again"]


def test_an_answer_that_nobody_goes_on_writing_is_stopped():
    chat = Conversation([answered("a", "A"), answered("b", "B", state="writing")])
    chat.settle()
    assert [exchange.answer.state for exchange in chat.exchanges] == ["done", "stopped"]
    assert not chat.is_waiting
    chat.ask_again(chat.exchanges[-1], "b")
    assert chat.is_waiting and chat.exchanges[-1].attempt == 1 and len(chat.exchanges) == 2
    chat.clear()
    assert not chat.exchanges and not chat.is_waiting


def test_a_conversation_is_bounded_in_turns_and_in_text():
    chat = Conversation()
    for number in range(MOST_EXCHANGES + 30):
        chat.ask(str(number))
        chat.exchanges[-1].answer = answered("", "x").answer
    assert len(chat.exchanges) == MOST_EXCHANGES and chat.let_go == 30
    assert chat.exchanges[0].question == "30"
    for _ in range(5):
        chat.ask("x" * (MOST_CHARACTERS // 2))
        assert chat.characters() <= MOST_CHARACTERS
    chat.ask("y" * 2 * MOST_CHARACTERS)
    assert [exchange.question[0] for exchange in chat.exchanges] == ["y"]


def chat_of(*parts: tuple[str, str, dict]) -> Conversation:
    """A conversation in which each answer saw all the exchanges before it, if it had history."""
    chat, system = Conversation(), Message("system", "Be brief.")
    for question, text, more in parts:
        chat.exchanges.append(Exchange(question))
        exchange = chat.exchanges[-1]
        with_history = more.get("with_history", True)
        before = [m for pair in chat.history(by_base=False) for m in pair] if with_history else []
        saw = (more.get("system", system), *before, exchange.message)
        more = {name: value for name, value in more.items() if name != "system"}
        exchange.answer = answered(question, text, **more | {"saw": saw}).answer
    return chat


def said_in(chat: Conversation) -> tuple[list[str], dict[str, int]]:
    """The rows as one line each, and what is missing."""
    rows, missing = training_rows(chat)
    return [" | ".join(turn["value"] for turn in row["conversations"]) for row in rows], missing


def test_a_chat_is_one_row_in_sharegpt_form():
    chat = chat_of(("a", "A", {}), ("b", "B", {"rating": 1}))
    [row], missing = training_rows(chat)
    assert row == {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "A"},
            {"from": "human", "value": "b"},
            {"from": "gpt", "value": "B", "rating": 1},
        ]
    }
    assert not missing


def test_no_row_teaches_what_it_does_not_say():
    """An answer stands behind what it was given, or is left out."""
    without = {"with_history": False}
    chat = chat_of(("a", "A", {}), ("name?", "I do not know.", without), ("c", "C", {}))
    assert said_in(chat) == (
        ["Be brief. | a | A", "Be brief. | name? | I do not know."],
        {AFTER_A_GAP: 1},
    )
    chat = chat_of(("I am Maja.", "Hello, Maja!", without), ("name?", "Maja.", {}))
    assert said_in(chat) == (["Be brief. | I am Maja. | Hello, Maja! | name? | Maja."], {})
    other = {"system": Message("system", "Sing.")}
    chat = chat_of(("a", "A", {}), ("b", "B", other))
    assert said_in(chat) == (["Be brief. | a | A"], {AFTER_A_GAP: 1})
    chat = chat_of(("a", "A", {}), ("b", "B", {}), ("c", "C", {}))
    last = chat.exchanges[-1].answer
    last.saw = (last.saw[0], *last.saw[3:])  # a had no room
    assert said_in(chat) == (["Be brief. | a | A | b | B"], {AFTER_A_GAP: 1})


@pytest.mark.parametrize(
    "bad, reason",
    [
        ({"rating": 0}, "rated down"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "cut"}, "too long"),
    ],
)
def test_a_bad_answer_and_what_follows_on_it_are_left_out_until_it_is_corrected(bad, reason):
    chat = chat_of(("a", "A", {}), ("b", "bad", bad), ("c", "C", {}), ("d", "D", {}))
    assert said_in(chat) == (["Be brief. | a | A"], {reason: 1, AFTER_A_GAP: 2})
    chat.exchanges[1].answer.correct("good")
    assert said_in(chat) == (["Be brief. | a | A | b | good | c | C | d | D"], {})
    assert chat.exchanges[1].answer.rating is None


def test_answers_without_text_are_no_rows():
    chat = chat_of(("a", " ", {}), ("b", "", {"state": "failed", "trouble": "no memory"}))
    chat.ask("c")
    assert said_in(chat) == ([], {"empty": 1, "failed": 1, "unanswered": 1})


def test_every_row_is_a_conversation_to_train_on():
    rng = random.Random(1)
    rows = 0
    for _ in range(200):
        parts = [
            (
                random_text(rng).strip() or "x",
                random_text(rng),
                {
                    "with_history": rng.random() < 0.7,
                    "state": rng.choice(["done", "done", "done", "cut", "stopped", "failed"]),
                    "rating": rng.choice([None, None, 0, 1]),
                },
            )
            for _ in range(rng.randrange(8))
        ]
        chat = chat_of(*parts)
        found, missing = training_rows(chat)
        answers = sum(turn["from"] == "gpt" for row in found for turn in row["conversations"])
        assert answers + sum(missing.values()) == len(parts)
        for line in as_jsonl(found).split("\n")[:-1]:
            turns = conversation_of(json.loads(line))
            assert turns[-1].role == "assistant"
            rows += 1
    assert rows > 50


def test_a_question_that_nobody_took_up_is_marked_when_another_comes():
    chat = Conversation()
    for text in "abc":
        chat.ask(text)
    assert [e.answer.state for e in chat.exchanges[:2]] == ["stopped", "stopped"]
    assert chat.is_waiting
    chat.stop()
    assert not chat.is_waiting and chat.exchanges[-1].answer.state == "stopped"
    assert chat.history(by_base=False) == []


def test_a_click_on_an_exchange_that_is_no_longer_the_last_does_nothing():
    chat = Conversation()
    chat.ask("a")
    old = chat.exchanges[-1]
    chat.ask("b")
    chat.ask_again(old, "a")
    assert [exchange.question for exchange in chat.exchanges] == ["a", "b"]
    chat.clear()
    chat.ask_again(old, "a")
    assert not chat.exchanges


def test_a_long_history_costs_no_more_than_its_room(chat_format, monkeypatch):
    """Seen to take a minute when the whole rest was written again for each exchange left out."""
    history = pairs(*["some words " * 50] * 200)
    written = []
    render = type(chat_format).render
    monkeypatch.setattr(
        type(chat_format),
        "render",
        lambda self, *args, **more: written.append(len(args[0])) or render(self, *args, **more),
    )
    prompt = prompt_that_fits(chat_format, "", history, Message("user", "x"), 1500)
    assert 0 < prompt.left_out < 200 and len(written) < 12
    assert max(written) <= 2 * len(prompt.messages) + 2


def test_the_second_answer_of_a_comparison_is_settled_and_counted_but_not_learnt():
    """Seen to fail when the base's answer was not settled, not counted, or was taught."""
    chat = chat_of(("a", "tuned", {}))
    [both] = chat.exchanges
    both.base_answer = answered("a", "of the base", state="writing").answer
    assert chat.characters() == len("a" + "tuned" + "of the base")
    chat.settle()
    assert [answer.state for answer in both.answers] == ["done", "stopped"]
    assert said_in(chat) == (["Be brief. | a | tuned"], {})


def test_a_corrected_answer_is_what_the_next_ones_know():
    """Seen to fail when a message was never made anew, and when a correction left its trouble."""
    chat = Conversation(
        [answered("a", "wrong", state="failed", trouble="no memory"), Exchange("b")]
    )
    [(_, before)] = chat.history(by_base=False)
    chat.exchanges[0].answer.correct("right")
    [(_, after)] = chat.history(by_base=False)
    answer = chat.exchanges[0].answer
    assert (before.content, after.content) == ("wrong", "right")
    assert (answer.state, answer.trouble, answer.is_corrected) == ("done", "", True)


def test_a_question_can_be_asked_again_and_again_and_a_cleared_chat_is_new():
    """Seen to fail when each attempt was the first, and when what was let go was still counted."""
    chat = Conversation([answered("a", "A")], let_go=3)
    for attempt in range(1, 4):
        chat.ask_again(chat.exchanges[-1], "a")
        assert chat.exchanges[-1].attempt == attempt
    chat.ask_again(chat.exchanges[-1], "b")
    assert chat.exchanges[-1].attempt == 0, "another question, and its first answer"
    chat.clear()
    assert not chat.exchanges and not chat.let_go
