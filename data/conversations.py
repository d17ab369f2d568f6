"""A row of a data set turned into a conversation, or refused for one named flaw.

Three shapes of rows are known, told by their columns:

    conversations   ShareGPT: a list of {"from": "human", "value": "..."} (FineTome has this one)
    messages        a list of {"role": "user", "content": "..."}
    instruction     Alpaca: one exchange in "instruction", "input" (may be empty) and "output"

Real data has rows in which something is wrong. A turn that is guessed into place teaches the wrong
speaker, so nothing is repaired: a row is either right or dropped, and the caller counts why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.chat_templates import Message

ROLE_OF = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}

NOT_A_CONVERSATION = "not a conversation"
UNKNOWN_ROLE = "unknown role"
EMPTY_TURN = "empty turn"
INVALID_UTF8 = "invalid UTF-8"
NOT_USER_FIRST = "first turn not a user's"
SAME_ROLES = "two same roles in a row"
LATE_SYSTEM = "system turn not first"
NO_ASSISTANT = "no assistant turn"
NOT_IN_FORMAT = "not expressible in the chat format"
NOTHING_LEFT = "nothing left to learn after the cut"


class Flaw(ValueError):
    """Why a row cannot be learnt from: one of the reasons above."""


def conversation_of(row: Mapping[str, Any] | None) -> list[Message]:
    """The turns of a row, a system turn first if it has one, then user and assistant in turns.

    Args:
        row: the columns by name; None is a row whose texts are no UTF-8.

    Raises:
        Flaw: if the row is not such a conversation.
    """
    if row is None:
        raise Flaw(INVALID_UTF8)
    turns = [turn_of(speaker, text) for speaker, text in raw_turns(row)]
    spoken = turns[1:] if turns[0].role == "system" else turns
    if any(turn.role == "system" for turn in spoken):
        raise Flaw(LATE_SYSTEM)
    if not spoken or spoken[0].role != "user":
        raise Flaw(NOT_USER_FIRST)
    if any(before.role == turn.role for before, turn in zip(spoken, spoken[1:], strict=False)):
        raise Flaw(SAME_ROLES)
    if len(spoken) == 1:
        raise Flaw(NO_ASSISTANT)
    return turns


def raw_turns(row: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Who says what, as the row's own columns have it; at least one turn."""
    turns = row.get("conversations") or row.get("messages")
    if not turns and "instruction" in row and "output" in row:
        asked = [text for text in (row["instruction"], row.get("input")) if text is not None]
        if not all(isinstance(text, str) for text in asked):
            raise Flaw(NOT_A_CONVERSATION)
        question = "\n\n".join(text for text in asked if text.strip())
        return [("user", question), ("assistant", row["output"])]
    if not turns or not isinstance(turns, list):
        raise Flaw(NOT_A_CONVERSATION)
    if not all(isinstance(turn, Mapping) for turn in turns):
        raise Flaw(NOT_A_CONVERSATION)
    return [(either(turn, "from", "role"), either(turn, "value", "content")) for turn in turns]


def either(turn: Mapping[str, Any], name: str, other: str) -> Any:
    """The value under one of two names; a parquet file may have both columns, one of them empty."""
    value = turn.get(name)
    return turn.get(other) if value is None else value


def turn_of(speaker: Any, text: Any) -> Message:
    """One turn, with its role under our name for it."""
    if not isinstance(speaker, str) or speaker.lower() not in ROLE_OF:
        raise Flaw(UNKNOWN_ROLE)
    if not isinstance(text, str | None):
        raise Flaw(NOT_A_CONVERSATION)
    if text is None or not text.strip():
        raise Flaw(EMPTY_TURN)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        raise Flaw(INVALID_UTF8) from None
    return Message(ROLE_OF[speaker.lower()], text)
