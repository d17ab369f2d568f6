"""How an exchange looks: the question, its answers, what is known of them, what can be done."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.conversation import Answer, Conversation, Exchange
from app.model_files import ModelFiles
from app.safe_markdown import safe_markdown
from app.voice import open_once

LONGEST_MESSAGE = 100_000  # characters
HOW_IT_ENDED = {"cut": "reached the longest answer", "stopped": "stopped", "failed": "failed"}


def draw_question(exchange: Exchange) -> None:
    """What the user said."""
    with st.chat_message("user"):
        st.markdown(safe_markdown(exchange.question), anchors=False)


def draw_answers(
    exchange: Exchange,
    conversation: Conversation,
    opened: dict[str, ModelFiles],
    is_busy: bool,
) -> None:
    """The answers, side by side if there are two, each with what can be done to it.

    Args:
        exchange: the exchange.
        conversation: that it belongs to.
        opened: the models that were opened so far.
        is_busy: whether another answer is about to be written, which a click would interrupt.
    """
    is_last = exchange is conversation.exchanges[-1]
    for answer, place in zip(exchange.answers, columns(len(exchange.answers)), strict=True):
        with place:
            if exchange.base_answer is not None:
                st.caption(safe_markdown(f"**{answer.by}**"))
            if answer.text:
                st.markdown(safe_markdown(answer.text), anchors=False)
            if answer.trouble:
                st.error(safe_markdown(answer.trouble), icon=":material/error:")
            st.caption(safe_markdown(notes(answer)))
            with st.container(horizontal=True, gap="small", vertical_alignment="center"):
                if answer is exchange.answer:
                    draw_judgement(answer, is_busy)
                draw_saw(answer, opened, is_busy)
                if is_last and answer is exchange.answer:
                    draw_last_tools(exchange, conversation, is_busy)


def columns(count: int) -> list[DeltaGenerator]:
    """Places for so many answers to one question."""
    message = st.chat_message("assistant")
    return [message] if count == 1 else list(message.columns(count, gap="medium"))


def writing_places(labels: list[str]) -> list[DeltaGenerator]:
    """Empty places for answers that are about to be written."""
    places = []
    for place, label in zip(columns(len(labels)), labels, strict=True):
        with place:
            if len(labels) > 1:
                st.caption(safe_markdown(f"**{label}**"))
            places.append(st.empty())
    return places


def notes(answer: Answer) -> str:
    """What is to be known of an answer, in one line."""
    parts = []
    if answer.tokens and not answer.is_corrected:
        parts.append(f"{answer.tokens:,} token{'s' * (answer.tokens > 1)}")
        parts.append(f"{speed(answer)} tokens/s")
        parts.append(f"first token after {answer.to_first:.2f} s")
    if not answer.with_history:
        parts.append("answered without history")
    if answer.left_out:
        parts.append(f"{left_out(answer.left_out)} had no room")
    if answer.state == "done" and not answer.text.strip():
        parts.append("an empty answer")
    if answer.state in HOW_IT_ENDED:
        parts.append(HOW_IT_ENDED[answer.state])
    if answer.is_corrected:
        parts.append("corrected by hand")
    return " · ".join(parts)


def speed(answer: Answer) -> str:
    """Tokens a second: of those after the first, which waits for the prompt, if there are any."""
    is_one = answer.tokens == 1
    seconds = answer.to_first if is_one else answer.seconds - answer.to_first
    rate = (1 if is_one else answer.tokens - 1) / max(seconds, 1e-6)
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def left_out(count: int) -> str:
    """How many of the oldest."""
    return "the oldest exchange" if count == 1 else f"the {count} oldest exchanges"


def draw_judgement(answer: Answer, is_busy: bool) -> None:
    """What says whether an answer is to be learnt from."""

    def rate() -> None:
        answer.rating = st.session_state[f"rating {answer.key}"]

    st.feedback(
        "thumbs",
        key=f"rating {answer.key}",
        default=answer.rating,
        on_change=rate,
        disabled=is_busy,
    )
    key = f"correct {answer.key}"
    if st.button("Correct", key=key, type="tertiary", disabled=is_busy or not answer.saw):
        correct(answer)


def draw_saw(answer: Answer, opened: dict[str, ModelFiles], is_busy: bool) -> None:
    """What opens the prompt of an answer, if it got so far as to have one."""
    key, is_off = f"saw {answer.key}", is_busy or not answer.saw
    if st.button("What the model saw", key=key, type="tertiary", disabled=is_off):
        what_it_saw(answer, opened)


def draw_last_tools(exchange: Exchange, conversation: Conversation, is_busy: bool) -> None:
    """What can be done to the last exchange."""
    st.button(
        "Answer again",
        key=f"again {exchange.key}",
        type="tertiary",
        disabled=is_busy,
        on_click=conversation.ask_again,
        args=(exchange, exchange.question),
    )
    if st.button("Edit message", key=f"edit {exchange.key}", type="tertiary", disabled=is_busy):
        edit(exchange, conversation)


@st.dialog("Correct this answer", width="large")
def correct(answer: Answer) -> None:
    """Lets a person write the answer as it should be."""
    text = ask_for("The answer as it should be", answer.text, "Save")
    if text:
        answer.correct(text)
        st.rerun()


@st.dialog("Edit your message", width="large")
def edit(exchange: Exchange, conversation: Conversation) -> None:
    """Lets the user say the last message differently, which is then answered anew."""
    text = ask_for("Your message", exchange.question, "Send")
    if text:
        conversation.ask_again(exchange, text)
        st.rerun()


def ask_for(label: str, before: str, button: str) -> str:
    """A form for a text; what was sent, or nothing yet."""
    with st.form(label, border=False):
        text = st.text_area(label, before, height=200, max_chars=LONGEST_MESSAGE)
        if st.form_submit_button(button, type="primary"):
            if text.strip():
                return text
            st.warning("It is empty.")
    return ""


@st.dialog("What the model saw", width="medium")
def what_it_saw(answer: Answer, opened: dict[str, ModelFiles]) -> None:
    """Shows the prompt of an answer, token by token."""
    from app.saw import show_what_it_saw

    try:
        show_what_it_saw(open_once(answer.model, opened), answer)
    except (ValueError, OSError) as error:
        st.error(safe_markdown(str(error)))
