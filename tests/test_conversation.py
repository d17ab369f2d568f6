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
    as_jsonl,
    as_rows,
    not_learnt,
    prompt_that_fits,
)
from app.model_files import open_model
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
    chat.ask_again("b?")
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


def test_rows_show_each_answer_what_it_was_given():
    system = Message("system", "Be brief.")
    without = answered("b", "B", with_history=False, saw=(system, Message("user", "b")))
    chat = Conversation(
        [
            answered("a", "A", saw=(system, Message("user", "a"))),
            without,
            answered("c", "C", rating=1),
            answered("d", "D", rating=0),
            answered("e", "E", state="stopped"),
            answered("f", "F", state="cut"),
            answered("g", " ", state="done"),
            Exchange("h"),
        ]
    )
    told = {"from": "system", "value": "Be brief."}
    assert as_rows(chat) == [
        {
            "conversations": [
                told,
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "A"},
                {"from": "human", "value": "c"},
                {"from": "gpt", "value": "C", "rating": 1},
            ]
        },
        {
            "conversations": [
                told,
                {"from": "human", "value": "b"},
                {"from": "gpt", "value": "B"},
            ]
        },
    ]
    assert not_learnt(chat) == {"rated down": 1, "stopped": 1, "cut": 1, "empty": 1}
    for exchange in chat.exchanges[3:6]:
        exchange.answer.correct("Better.")
    assert sum("Better." in turn["value"] for turn in as_rows(chat)[0]["conversations"]) == 3
    assert not_learnt(chat) == {"empty": 1}


def test_every_row_is_a_conversation_to_train_on():
    rng = random.Random(1)
    for _ in range(200):
        chat = Conversation()
        for _ in range(rng.randrange(8)):
            saw = (Message("system", "Be brief."), Message("user", "x"))[rng.randrange(2) :]
            question = (random_text(rng).strip() or "x").replace("\ud800", "")
            chat.exchanges.append(
                answered(
                    question,
                    random_text(rng),
                    saw=saw,
                    with_history=rng.random() < 0.7,
                    state=rng.choice(["done", "cut", "stopped", "failed"]),
                    rating=rng.choice([None, 0, 1]),
                )
            )
        lines = as_jsonl(chat).split("\n")[:-1]
        assert len(lines) == len(as_rows(chat))
        for line in lines:
            turns = conversation_of(json.loads(line))
            assert turns[-1].role == "assistant"
