"""A chat as it stands on the page, what of it the model is given, and what can be learnt from it.

An exchange is a question and what was answered, by the tuned model and, in a comparison, by the
base model too. Everything here is text and numbers: nothing that the model computes with is kept.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from data.chat_format import ChatFormat, Message

MOST_EXCHANGES = 100
MOST_CHARACTERS = 1_000_000

# "cut" ended because it had its longest length, "failed" because of what `trouble` says.
State = Literal["writing", "done", "cut", "stopped", "failed"]


@dataclass
class Answer:
    """An answer, finished or not.

    Attributes:
        by: who gives it, to be shown.
        model: the name of the model, whose tokenizer tells what it saw.
        saw: the messages that it was given.
        with_history: whether they were to include the earlier exchanges.
        left_out: how many of these, the oldest, had no room.
        text: what has been written so far.
        state: how far it is.
        trouble: what went wrong, if something did.
        tokens: how many it has.
        to_first: seconds until the first of them.
        seconds: from the first of them to the last.
        rating: 1 for good, 0 for bad, None for not rated.
        is_corrected: whether the text is a person's.
        key: tells it from all others on the page.
        message: what `as_message` returned last.
    """

    by: str
    model: str
    saw: tuple[Message, ...]
    with_history: bool
    left_out: int = 0
    text: str = ""
    state: State = "writing"
    trouble: str = ""
    tokens: int = 0
    to_first: float = 0.0
    seconds: float = 0.0
    rating: int | None = None
    is_corrected: bool = False
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    message: Message = Message("assistant", "")

    @property
    def is_worth_learning(self) -> bool:
        """Whether a model should answer like this: whole and not disliked, or put right by hand."""
        return bool(self.text.strip()) and (
            self.is_corrected or (self.state == "done" and self.rating != 0)
        )

    def as_message(self) -> Message:
        """The text as a message, made once: all later prompts of the conversation share it."""
        if self.message.content != self.text:
            self.message = Message("assistant", self.text)
        return self.message

    def correct(self, text: str) -> None:
        """Puts a person's text in place of the model's."""
        self.text, self.is_corrected, self.state, self.trouble = text, True, "done", ""


@dataclass
class Exchange:
    """A question and what was answered.

    Attributes:
        question: what the user said.
        answer: by the model that was chosen; None until it is begun.
        base_answer: by the model without the adapter, in a comparison.
        attempt: how often it was answered before.
    """

    question: str
    answer: Answer | None = None
    base_answer: Answer | None = None
    attempt: int = 0
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @cached_property
    def message(self) -> Message:
        """The question as a message; all later prompts share it."""
        return Message("user", self.question)

    @property
    def answers(self) -> list[Answer]:
        """Those there are."""
        return [answer for answer in (self.answer, self.base_answer) if answer is not None]

    def said(self, by_base: bool) -> tuple[Message, Message] | None:
        """The exchange as history; None if nothing was answered.

        Each side of a comparison goes on with its own words, where it has some.
        """
        sides = (self.base_answer, self.answer) if by_base else (self.answer,)
        reply = next((side for side in sides if side and side.text.strip()), None)
        return None if reply is None else (self.message, reply.as_message())


@dataclass
class Conversation:
    """The exchanges on a page, the oldest first, and how many older ones were let go.

    Attributes:
        key: tells this conversation from all others on the server.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    let_go: int = 0
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def is_waiting(self) -> bool:
        """Whether the last question has not been taken up."""
        return bool(self.exchanges) and self.exchanges[-1].answer is None

    def settle(self) -> None:
        """Marks as stopped what is still being written, if nobody goes on writing it."""
        for exchange in self.exchanges:
            for answer in exchange.answers:
                if answer.state == "writing":
                    answer.state = "stopped"

    def ask(self, question: str) -> None:
        """Adds a question; the oldest exchanges go if there are too many, or too much text."""
        self.exchanges.append(Exchange(question))
        while len(self.exchanges) > 1 and (
            len(self.exchanges) > MOST_EXCHANGES or self.characters() > MOST_CHARACTERS
        ):
            del self.exchanges[0]
            self.let_go += 1

    def ask_again(self, question: str) -> None:
        """Takes back the last answer, for another one to the question, which may be a new one."""
        last = self.exchanges[-1]
        self.exchanges[-1] = Exchange(question, attempt=last.attempt + 1)

    def clear(self) -> None:
        """Forgets everything."""
        self.exchanges.clear()
        self.let_go = 0

    def characters(self) -> int:
        """How much text there is."""
        return sum(
            len(exchange.question) + sum(len(answer.text) for answer in exchange.answers)
            for exchange in self.exchanges
        )

    def history(self, by_base: bool) -> list[tuple[Message, Message]]:
        """The exchanges before the last, as one of the two models knows them."""
        said = (exchange.said(by_base) for exchange in self.exchanges[:-1])
        return [pair for pair in said if pair is not None]


@dataclass(frozen=True)
class Prompt:
    """What a model is given, and how many exchanges of the history had no room in it."""

    messages: tuple[Message, ...]
    ids: list[int]
    left_out: int


def prompt_that_fits(
    chat_format: ChatFormat,
    system: str,
    history: Sequence[tuple[Message, Message]],
    question: Message,
    room: int,
) -> Prompt:
    """The longest prompt of at most `room` tokens: whole exchanges are left out, the oldest first.

    Args:
        chat_format: the model's.
        system: what the system says; nothing if it is blank.
        history: the earlier exchanges; none for an answer without history.
        question: the message to answer.
        room: tokens of the context that are not kept free for the answer.

    Raises:
        ValueError: if the question has no room even by itself.
    """
    opening = [Message("system", system)] if system.strip() else []
    for left_out in range(len(history) + 1):
        turns = [turn for exchange in history[left_out:] for turn in exchange]
        messages = (*opening, *turns, question)
        ids = chat_format.render(messages, generation_prompt=True).ids
        if len(ids) <= room:
            return Prompt(messages, ids, left_out)
    raise ValueError(
        f"this message and the system prompt have {len(ids):,} tokens, and {room:,} fit beside "
        "the longest answer: shorten one of the three"
    )


def as_rows(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as rows to train on, in ShareGPT form.

    A row shows an answer what it was given when it was written. So the exchanges with history are
    one row, and each without history is one of its own: taught in the row of the others, "I do not
    know your name" would be right after the name was said. What is not worth learning is left out.
    """
    rows: list[list[dict[str, Any]]] = []
    together: list[dict[str, Any]] = []
    for exchange in conversation.exchanges:
        answer = exchange.answer
        if answer is None or not answer.is_worth_learning:
            continue
        turns = [turn_of("human", exchange.question), turn_of("gpt", answer.text)]
        if answer.rating is not None:
            turns[1]["rating"] = answer.rating
        opening = [turn_of("system", m.content) for m in answer.saw if m.role == "system"]
        if not answer.with_history:
            rows.append(opening + turns)
        elif together:
            together.extend(turns)
        else:
            together = opening + turns
            rows.append(together)
    return [{"conversations": turns} for turns in rows]


def turn_of(speaker: str, text: str) -> dict[str, Any]:
    """One turn of a row."""
    return {"from": speaker, "value": text}


def as_jsonl(conversation: Conversation) -> str:
    """The rows as a file for `train.py --data`."""
    rows = as_rows(conversation)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def not_learnt(conversation: Conversation) -> dict[str, int]:
    """How many answers are not among the rows, by why."""
    reasons: dict[str, int] = {}
    for exchange in conversation.exchanges:
        answer = exchange.answer
        if answer is not None and not answer.is_worth_learning:
            reason: str = "rated down" if answer.state == "done" else answer.state
            reason = reason if answer.text.strip() else "empty"
            reasons[reason] = reasons.get(reason, 0) + 1
    return reasons
