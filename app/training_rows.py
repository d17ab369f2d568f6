"""What of a chat can be learnt from, as rows for `train.py --data`."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from app.conversation import Answer, Conversation
from data.chat_format import Message

AFTER_A_GAP = "after one that is left out or was asked without history"
# By how it ended, and "done" is only left out if somebody did not like it.
REASONS = {"cut": "too long", "stopped": "stopped", "failed": "failed", "done": "rated down"}


def training_rows(conversation: Conversation) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The conversation in ShareGPT form, and how many answers are not in it, by why.

    A row shows an answer what it was given when it was written, and every answer in a row is
    learnt. So an answer without history begins a row; and one that was given an exchange which is
    in no row (rated down, stopped, left out), or in another, is left out itself. Else a row could
    hold "Your name is Maja" without the message that said so, and teach to invent.
    """
    rows: list[list[dict[str, Any]]] = []
    # By what its last exchange leaves to be known: the system's text and all questions so far.
    going_on: dict[tuple[Message, ...], list[dict[str, Any]]] = {}
    missing: Counter[str] = Counter()
    for exchange in conversation.exchanges:
        answer = exchange.answer
        if answer is None or not answer.is_worth_learning:
            missing[why_not(answer)] += 1
            continue
        known = tuple(message for message in answer.saw[:-1] if message.role != "assistant")
        if all(message.role == "system" for message in known):
            row = [turn_of("system", message.content) for message in known]
            rows.append(row)
        elif known in going_on:
            row = going_on.pop(known)
        else:
            missing[AFTER_A_GAP] += 1
            continue
        row += [turn_of("human", exchange.question), turn_of("gpt", answer.text)]
        if answer.rating is not None:
            row[-1]["rating"] = answer.rating
        going_on[(*known, exchange.message)] = row
    return [{"conversations": row} for row in rows], dict(missing)


def why_not(answer: Answer | None) -> str:
    """Why an answer is not worth learning, in two words."""
    if answer is None:
        return "unanswered"
    return REASONS[answer.state] if answer.text.strip() or answer.trouble else "empty"


def turn_of(speaker: str, text: str) -> dict[str, Any]:
    """One turn of a row."""
    return {"from": speaker, "value": text}


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """Rows as a file for `train.py --data`."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
