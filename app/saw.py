"""What the model saw: the tokens of a prompt, each in the colour of who it is from.

The tokens go to the browser as data and become text there (`textContent`), so that nothing a
prompt says can be markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
from streamlit.components.v2 import component

from app.conversation import Answer
from app.exchange import left_out
from app.model_files import ModelFiles
from data.chat_format import ChatFormat, Message
from model.generate import common_prefix

LEGEND = {
    "control": "control tokens",
    "system": "system",
    "user": "you",
    "assistant": "the model",
}
STYLE = """
.tokens { font-family: var(--st-code-font); font-size: 0.85rem; line-height: 1.9; }
.tokens span { white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 3px; padding: 2px 0;
  margin-right: 1px; color: var(--st-text-color); }
.tokens .control { background: color-mix(in srgb, var(--st-orange-color) 45%, transparent);
  font-weight: 600; }
.tokens .system { background: color-mix(in srgb, var(--st-violet-color) 28%, transparent); }
.tokens .user { background: color-mix(in srgb, var(--st-blue-color) 28%, transparent); }
.tokens .assistant { background: color-mix(in srgb, var(--st-green-color) 28%, transparent); }
.legend { margin-bottom: 0.75rem; }
.legend span { padding: 2px 6px; margin-right: 6px; }
"""
SCRIPT = """
export default function ({ data, parentElement }) {
  const add = (parent, tag, kind, text) => {
    const element = document.createElement(tag);
    element.className = kind;
    element.textContent = text;
    parent.appendChild(element);
    return element;
  };
  parentElement.querySelectorAll(".tokens").forEach((old) => old.remove());
  const legend = add(parentElement, "div", "tokens legend", "");
  for (const [kind, text] of data.legend) add(legend, "span", kind, text);
  const tokens = add(parentElement, "div", "tokens prompt", "");
  for (const [kind, text, ids] of data.spans) {
    const shown = text.replaceAll("\\n", "\\u23ce\\n") || "\\u2205";
    add(tokens, "span", kind, shown).title = ids.join(" ");
  }
}
"""

TOKENS = component("prompt_tokens", css=STYLE, js=SCRIPT)


@dataclass(frozen=True)
class Span:
    """Tokens that are shown as one: usually a single one, or those that make up one character.

    Attributes:
        kind: a key of `LEGEND`.
        text: what they spell.
        ids: the tokens.
    """

    kind: str
    text: str
    ids: tuple[int, ...]


def show_what_it_saw(files: ModelFiles, answer: Answer) -> None:
    """Draws the prompt of an answer, and how full the context was with it."""
    ids = files.chat_format.render(answer.saw, generation_prompt=True).ids
    share = len(ids) / files.context
    st.progress(
        min(1.0, share),
        text=f"{len(ids):,} of the {files.context:,} tokens that its context holds ({share:.0%})",
    )
    if answer.left_out:
        st.caption(f"Left out, for want of room: {left_out(answer.left_out)}.")
    spans = spans_of(files.chat_format, answer.saw, ids)
    data = {
        "legend": list(LEGEND.items()),
        "spans": [[span.kind, span.text, span.ids] for span in spans],
    }
    TOKENS(data=data)
    st.caption("Point at a token for its number. ⏎ is a line break.")


def spans_of(
    chat_format: ChatFormat, messages: Sequence[Message], ids: Sequence[int]
) -> list[Span]:
    """The prompt, cut into what is shown with one colour each.

    Joined, the ids are those of the prompt, and the texts what it spells.
    """
    control_ids = frozenset(chat_format.tokenizer.control_ids.values())
    owners = owners_of(chat_format, messages, ids)
    spans: list[Span] = []
    text, begun = chat_format.tokenizer.stream(), []
    for token, owner in zip(ids, owners, strict=True):
        begun.append(token)
        spelt = text.push(token)
        if spelt or token in control_ids:
            kind = "control" if token in control_ids else owner
            spans.append(Span(kind, spelt, tuple(begun)))
            begun = []
    if begun:
        spans.append(Span(owners[-1], text.flush(), tuple(begun)))
    return spans


def owners_of(
    chat_format: ChatFormat, messages: Sequence[Message], ids: Sequence[int]
) -> list[str]:
    """Whose turn each token belongs to: the role of a message, its header and end included.

    A turn ends where the prompt stops being the same with and without what follows it.
    """
    messages = with_own_system(chat_format, messages, ids)
    owners: list[str] = []
    for count, message in enumerate(messages, start=1):
        try:
            until = chat_format.render(messages[:count]).ids
        except ValueError:  # Llama 2 has no system's turn: the user's first holds it
            continue
        owners += [message.role] * (common_prefix(until, ids) - len(owners))
    return owners + ["assistant"] * (len(ids) - len(owners))


def with_own_system(
    chat_format: ChatFormat, messages: Sequence[Message], ids: Sequence[int]
) -> Sequence[Message]:
    """The messages with the system's turn that the format itself puts first, if it does."""
    if messages[0].role == "system":
        return messages
    explicit = [Message("system", chat_format.default_system), *messages]
    is_same = chat_format.render(explicit, generation_prompt=True).ids == list(ids)
    return explicit if is_same else messages
