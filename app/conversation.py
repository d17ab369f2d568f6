"""A chat as it stands on the page, and what of it the model is given.

An exchange is a question and what was answered, by the tuned model and, in a comparison, by the
base model too. Everything here is text and numbers: nothing that the model computes with is kept.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

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
        to_first: seconds that the first of them took, with reading the prompt.
        seconds: that all of them took.
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
    message: Message = field(default=Message("assistant", ""), repr=False, compare=False)

    @property
    def is_worth_learning(self) -> bool:
        """Whether a model should answer like this: whole and not disliked, or put right by hand."""
        is_good = self.is_corrected or (self.state == "done" and self.rating != 0)
        return is_good and bool(self.saw) and bool(self.text.strip())

    def as_message(self) -> Message:
        """The text as a message, made once: all later prompts of the conversation share it."""
        if self.message.content != self.text:
            self.message = Message("assistant", self.text)
        return self.message

    def correct(self, text: str) -> None:
        """Puts a person's text in place of the model's."""
        self.text, self.is_corrected, self.rating = text, True, None
        self.state, self.trouble = "done", ""


@dataclass
class Exchange:
    """A question and what was answered.

    Attributes:
        question: what the user said.
        answer: by the model that was chosen; None until it is begun.
        base_answer: by the model without the adapter, in a comparison.
        attempt: how often the same question was answered before.
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
        """Marks as stopped what is still being written; whoever writes it then ends."""
        for exchange in self.exchanges:
            for answer in exchange.answers:
                if answer.state == "writing":
                    answer.state = "stopped"

    def end_unanswered(self, state: State, trouble: str = "") -> None:
        """Gives a question that waits for an answer an empty one, so that it waits no longer."""
        if self.is_waiting:
            self.exchanges[-1].answer = Answer("", "", (), True, state=state, trouble=trouble)

    def stop(self) -> None:
        """Ends the answer that is being written, or about to be."""
        self.end_unanswered("stopped")
        self.settle()

    def ask(self, question: str) -> None:
        """Adds a question; the oldest exchanges go if there are too many, or too much text."""
        self.stop()
        self.exchanges.append(Exchange(question))
        self.let_go_of_the_oldest()

    def ask_again(self, exchange: Exchange, question: str) -> None:
        """Takes back the answer to the last exchange, for another one, perhaps to a new question.

        Another than the last stays as it is: a click on a page that has changed since.
        """
        if self.exchanges and self.exchanges[-1] is exchange:
            attempt = exchange.attempt + 1 if question == exchange.question else 0
            self.exchanges[-1] = Exchange(question, attempt=attempt)
            self.let_go_of_the_oldest()

    def let_go_of_the_oldest(self) -> None:
        """Keeps the conversation within its bounds."""
        while len(self.exchanges) > 1 and (
            len(self.exchanges) > MOST_EXCHANGES or self.characters() > MOST_CHARACTERS
        ):
            del self.exchanges[0]
            self.let_go += 1

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

    It is found from the newest exchange on, with twice as many each time until they do not fit,
    and then by halves: however long the history is, little more than the room is ever written.

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

    def prompt_with(newest: int) -> Prompt:
        kept = history[len(history) - newest :]
        messages = (*opening, *(turn for exchange in kept for turn in exchange), question)
        ids = chat_format.render(messages, generation_prompt=True).ids
        return Prompt(messages, ids, len(history) - newest)

    best = prompt_with(0)
    if len(best.ids) > room:
        raise ValueError(
            f"this message and the system prompt have {len(best.ids):,} tokens, and {room:,} fit "
            "beside the longest answer: shorten one of the three"
        )
    fits, too_many = 0, len(history) + 1
    while too_many - fits > 1:
        newest = min(2 * fits + 1, (fits + too_many) // 2)
        prompt = prompt_with(newest)
        if len(prompt.ids) <= room:
            best, fits = prompt, newest
        else:
            too_many = newest
    return best
