"""The four chat formats that are known here, each a generator that reads like its description.

A format turns messages into pieces: a control token by its name, or a text, and of both whether an
assistant wrote them. It is what the Hub's template of the same model says, in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. Raises ValueError for a role outside `ROLES`."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"unknown role {self.role!r}: a turn is by one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(f"the {self.role}'s turn is {self.content!r}, not a text")


class Piece(NamedTuple):
    """A stretch of a conversation in a format's own words: a text, or one control token's name."""

    text: str
    by_assistant: bool = False
    is_control: bool = False


@cache
def control(token: str, by_assistant: bool = False) -> Piece:
    """A control token. There are few, and each is wanted in every turn."""
    return Piece(token, by_assistant, is_control=True)


def llama3(
    messages: Sequence[Message], generation_prompt: bool, date: str | None
) -> Iterator[Piece]:
    """<|start_header_id|>ROLE<|end_header_id|>, a blank line, the trimmed text, <|eot_id|>.

    From Llama 3.1 on, two lines about dates open the system's turn, which is then always there.

    Args:
        messages: the turns.
        generation_prompt: end with an assistant's header.
        date: what "Today Date" says; None for Llama 3.0, which has neither line.
    """
    turns = [(message.role, message.content.strip()) for message in messages]
    if date is not None:
        system = turns.pop(0)[1] if turns[0][0] == "system" else ""
        dates = f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
        turns.insert(0, ("system", dates + system))

    yield control("<|begin_of_text|>")
    for role, text in turns:
        by_assistant = role == "assistant"
        yield from llama3_header(role)
        yield Piece(text, by_assistant)
        yield control("<|eot_id|>", by_assistant)
    if generation_prompt:
        yield from llama3_header("assistant")


def llama3_header(role: str) -> Iterator[Piece]:
    """What stands before every turn of Llama 3."""
    yield control("<|start_header_id|>")
    yield Piece(role)
    yield control("<|end_header_id|>")
    yield Piece("\n\n")


def chatml(
    messages: Sequence[Message], generation_prompt: bool, default_system: str | None
) -> Iterator[Piece]:
    """<|im_start|>ROLE, a line break, the text as it is, <|im_end|>, a line break.

    Args:
        messages: the turns.
        generation_prompt: end with an assistant's header.
        default_system: what the system says in a conversation without a system turn, if anything.
    """
    if default_system is not None and messages[0].role != "system":
        messages = [Message("system", default_system), *messages]
    for message in messages:
        by_assistant = message.role == "assistant"
        yield control("<|im_start|>")
        yield Piece(message.role + "\n")
        yield Piece(message.content, by_assistant)
        yield control("<|im_end|>", by_assistant)
        yield Piece("\n")
    if generation_prompt:
        yield control("<|im_start|>")
        yield Piece("assistant\n")


def zephyr(messages: Sequence[Message], generation_prompt: bool) -> Iterator[Piece]:
    """<|ROLE|>, a line break, the text as it is, </s>, a line break.

    The headers are ordinary text, not control tokens, so that a user can imitate them. What a user
    cannot do is end a turn.
    """
    for message in messages:
        by_assistant = message.role == "assistant"
        yield Piece(f"<|{message.role}|>\n")
        yield Piece(message.content, by_assistant)
        yield control("</s>", by_assistant)
        yield Piece("\n")
    if generation_prompt:
        yield Piece("<|assistant|>\n")


def llama2(messages: Sequence[Message], generation_prompt: bool) -> Iterator[Piece]:
    """<s>, [INST] what the user says [/INST] what the assistant says, </s>, and so on.

    Every exchange has an <s> of its own, as in Meta's code and the Hub's template. The system's
    text goes into the user's first turn between <<SYS>> and <</SYS>>. All these marks but <s> and
    </s> are ordinary text, so that a user can imitate them. A prompt needs nothing at its end.

    Raises:
        ValueError: if user and assistant do not take turns, the user first.
    """
    system, turns = None, list(messages)
    if turns[0].role == "system":
        system = turns.pop(0).content
    expected = ["user", "assistant"] * len(turns)
    if not turns or any(turn.role != role for turn, role in zip(turns, expected, strict=False)):
        order = ", ".join(message.role for message in messages)
        raise ValueError(f"Llama 2 needs user and assistant in turns, the user first, not: {order}")

    for number, turn in enumerate(turns):
        if turn.role == "user":
            said = turn.content
            if number == 0 and system is not None:
                said = f"<<SYS>>\n{system}\n<</SYS>>\n\n{said}"
            yield control("<s>")
            yield Piece(f"[INST] {said.strip()} [/INST]")
        else:
            yield Piece(f" {turn.content.strip()} ", by_assistant=True)
            yield control("</s>", by_assistant=True)
