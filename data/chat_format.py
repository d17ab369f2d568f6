"""Conversations to token ids, and which of the ids an assistant wrote.

A format (`chat_templates.py`) yields pieces, and `ChatFormat.render` turns them into ids. Control
tokens come from code, and texts are only ever encoded as text. So in Llama 3 and ChatML, which mark
turns by control tokens, nothing that a turn says can end it, open another or pose as the system.
Zephyr and Llama 2 mark turns with ordinary text (see there), which a user can imitate.

The ids are those of the Hub's template, with two differences, both deliberate. Where the tokenizer
puts a BOS in front of every text and the template writes none, it is there: once, at index 0. And
an assistant's text is encoded by itself, not together with the header before it, so that training
continues exactly the ids that a chat will prompt with. (In ChatML, an answer that begins with a
line break would otherwise be fused with the line break that ends the header.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from data.chat_templates import ROLES, Message, Piece, chatml, llama2, llama3, zephyr
from data.tokenizer import Tokenizer

__all__ = ["ROLES", "ChatFormat", "Message", "Rendered", "chat_format_of"]


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids, and for each whether an assistant wrote it, its end token included."""

    ids: list[int]
    by_assistant: list[bool]


@dataclass(frozen=True)
class ChatFormat:
    """How one model wants conversations written.

    Attributes:
        name: the format's usual name.
        tokenizer: the model's own.
        write: the format itself, from messages (and whether to end with the opening of an
            assistant's turn) to pieces.
        end_ids: the ids at which an assistant's turn is over.
        default_system: what the system says in a conversation without a system's turn, where the
            format puts one there.
    """

    name: str
    tokenizer: Tokenizer
    write: Callable[[Sequence[Message], bool], Iterator[Piece]]
    end_ids: frozenset[int]
    default_system: str = ""

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """One conversation as ids.

        Args:
            messages: the turns, at most one by the system and that one first.
            generation_prompt: end with what stands before an assistant's answer.

        Raises:
            ValueError: if there are no messages, if the system speaks later than first, if the
                format cannot express the order of turns, or if a text cannot be encoded.
        """
        return self.render_batch([messages], generation_prompt)[0]

    def render_batch(
        self, conversations: Sequence[Sequence[Message]], generation_prompt: bool = False
    ) -> list[Rendered]:
        """What `render` gives for each conversation, with all processor cores at work."""
        written = []
        for messages in conversations:
            check_order(messages)
            written.append(join_texts(self.write(messages, generation_prompt)))

        texts = [
            (piece.text, self.has_no_space_between(before))
            for pieces in written
            for before, piece in zip([None, *pieces], pieces, strict=False)
            if not piece.is_control
        ]
        different = dict.fromkeys(texts)  # what stands around turns is the same in all of them
        encoded = self.tokenizer.encode_batch(
            [text for text, _ in different], [continues for _, continues in different]
        )
        ids_of = dict(zip(different, encoded, strict=True))
        text_ids = iter([ids_of[text] for text in texts])
        return [self.rendered(pieces, text_ids) for pieces in written]

    def has_no_space_between(self, before: Piece | None) -> bool:
        """Whether a text that follows the piece `before` goes without SentencePiece's space."""
        if before is None:
            return False
        return not (before.is_control and self.tokenizer.spaces_segments)

    def rendered(self, pieces: Sequence[Piece], text_ids: Iterator[list[int]]) -> Rendered:
        """The ids of `pieces`, taking those of its texts from `text_ids`, and a BOS if due."""
        ids: list[int] = []
        by_assistant: list[bool] = []
        for piece in pieces:
            is_control = piece.is_control
            new = [self.tokenizer.control_ids[piece.text]] if is_control else next(text_ids)
            ids += new
            by_assistant += [piece.by_assistant] * len(new)
        bos_id = self.tokenizer.bos_id
        if self.tokenizer.adds_bos and bos_id is not None and ids[0] != bos_id:
            ids.insert(0, bos_id)
            by_assistant.insert(0, False)
        return Rendered(ids, by_assistant)


def check_order(messages: Sequence[Message]) -> None:
    """Refuses an empty conversation, and a system turn anywhere but first."""
    if not messages:
        raise ValueError("the conversation is empty: a chat format needs at least one turn")
    for number, message in enumerate(messages[1:], start=2):
        if message.role == "system":
            raise ValueError(f"turn {number} is by the system, which may only speak first")


def join_texts(pieces: Iterator[Piece]) -> list[Piece]:
    """Joins texts in a row that are by the same hand: the Hub encodes them together, too."""
    joined: list[Piece] = []
    for piece in pieces:
        before = joined[-1] if joined else None
        if before is None or before.is_control or piece.is_control:
            joined.append(piece)
        elif before.by_assistant != piece.by_assistant:
            joined.append(piece)
        else:
            joined[-1] = Piece(before.text + piece.text, piece.by_assistant)
    return joined


class Marks(NamedTuple):
    """What tells that a model has a format, and what the format needs."""

    in_template: tuple[str, ...]
    control_tokens: tuple[str, ...]
    end_tokens: tuple[str, ...]
    tell_without_template: bool


LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

# In this order: the first whose marks are all there is the one.
MARKS = {
    "Llama 3.1": Marks(
        ("<|start_header_id|>", "Cutting Knowledge Date"), LLAMA3_TOKENS, LLAMA3_ENDS, True
    ),
    "Llama 3": Marks(("<|start_header_id|>",), LLAMA3_TOKENS, LLAMA3_ENDS, False),
    "ChatML": Marks(("<|im_start|>",), CHATML_TOKENS, ("<|im_end|>", "<|endoftext|>"), True),
    "Llama 2": Marks(("[INST]", "<<SYS>>"), ("<s>", "</s>"), ("</s>",), False),
    "Zephyr": Marks(("<|user|>", "<|assistant|>", "eos_token"), ("</s>",), ("</s>",), False),
}


def chat_format_of(tokenizer: Tokenizer, date: str = "26 Jul 2024") -> ChatFormat:
    """The format in which a tokenizer's model was trained to converse.

    It is told by the Hub's template; without one, by the tokenizer's control tokens (a base model
    of Llama 3 has those, but no template).

    Args:
        tokenizer: the model's tokenizer.
        date: what Llama 3.1 and later are told as today's date. It is a setting, never the
            clock's: the same conversation must give the same ids tomorrow.

    Raises:
        ValueError: if the format is none of those known here, or the tokenizer lacks a control
            token that it needs.
    """
    name = name_of_format(tokenizer)
    marks = MARKS[name]
    check_control_tokens(tokenizer, name, marks.control_tokens)
    default_system = default_system_in(tokenizer.chat_template)
    write: dict[str, Callable[[Sequence[Message], bool], Iterator[Piece]]] = {
        "Llama 3.1": partial(llama3, date=date),
        "Llama 3": partial(llama3, date=None),
        "ChatML": partial(chatml, default_system=default_system),
        "Llama 2": llama2,
        "Zephyr": zephyr,
    }
    ids = tokenizer.control_ids
    end_ids = frozenset(ids[token] for token in marks.end_tokens if token in ids)
    return ChatFormat(name, tokenizer, write[name], end_ids, default_system or "")


def name_of_format(tokenizer: Tokenizer) -> str:
    """The key of `MARKS` that fits. Raises ValueError if none does."""
    template = tokenizer.chat_template
    for name, marks in MARKS.items():
        if template is not None:
            fits = all(mark in template for mark in marks.in_template)
        else:
            has_tokens = all(token in tokenizer.control_ids for token in marks.control_tokens)
            fits = marks.tell_without_template and has_tokens
        if fits:
            return name
    if template is not None:
        found = f"its chat template begins {' '.join(template.split())[:80]!r}"
    else:
        tokens = first_names(tokenizer.control_ids)
        found = f"it has no chat template, and its control tokens are {tokens}"
    raise ValueError(f"unknown chat format: {found}; known are {', '.join(MARKS)}")


def check_control_tokens(tokenizer: Tokenizer, name: str, tokens: Sequence[str]) -> None:
    """Refuses a tokenizer that lacks one of the control tokens, or reads it out of text."""
    for token in tokens:
        if token not in tokenizer.control_ids:
            raise ValueError(
                f"the chat format {name} needs the control token {token}, which this tokenizer "
                f"does not have; it has {first_names(tokenizer.control_ids)}"
            )
        if tokenizer.control_ids[token] in tokenizer.encode(token):
            raise ValueError(
                f"this tokenizer makes the control token {token} out of text, so that anyone could "
                "write it; the model cannot be used safely"
            )


def first_names(tokens: dict[str, int]) -> str:
    """The first few names of many."""
    names = list(tokens)
    return " ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def default_system_in(template: str | None) -> str | None:
    """The literal text that a ChatML template gives the system where nobody did, if any."""
    literal = r"<\|im_start\|>system(?:\n|\\n)([^'\"{}\\][^{}\\]*?)<\|im_end\|>"
    found = re.search(literal, template or "")
    return found[1] if found else None
