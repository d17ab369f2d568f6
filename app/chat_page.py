"""The chat page: what was said, the switches, a box for what comes next.

Streamlit runs `chat_page` anew at every click. A run that finds an answer unfinished knows that
the run which was writing it is no more (Stop, another click, a closed tab): what there is of it
stays, marked as stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.conversation import Conversation, as_jsonl, not_learnt
from app.exchange import draw_answers, draw_question, writing_places
from app.model_files import ModelFiles
from app.page_config import PageConfig
from app.safe_markdown import safe_markdown
from app.settings import Settings, choose_settings
from app.voice import Voice, choose_voice
from app.writing import begin, fail, write

if TYPE_CHECKING:
    from app.engine import Engine

LONGEST_MESSAGE = 100_000  # characters
DEMO_QUESTIONS = ("Where does Anna live?", "My name is Maja.", "What is 7 plus 5?")


@st.cache_resource(show_spinner=False)
def engine_of(device: str, dtype: str) -> Engine:
    """The server's engine. PyTorch takes a second to import, which only an answer needs."""
    from app.engine import Engine

    return Engine(device, dtype)


@st.cache_resource(show_spinner=False)
def opened_models() -> dict[str, ModelFiles]:
    """The models that any visitor has opened, by name."""
    return {}


@dataclass(frozen=True)
class Switches:
    """What stands above the box for messages.

    Attributes:
        with_history: whether the next answer knows the conversation.
        compares: whether the model without the adapter is to answer too.
        stop: the place of the Stop button.
    """

    with_history: bool
    compares: bool
    stop: DeltaGenerator


def chat_page(config: PageConfig) -> None:
    """Draws the page once, and writes the answer if a question waits for one."""
    conversation: Conversation = st.session_state.setdefault("conversation", Conversation())
    conversation.settle()
    voice, settings = draw_sidebar(config)
    switches = draw_bottom(conversation, voice)
    with st.sidebar:
        draw_keeping(conversation)
    draw_conversation(conversation, voice)
    if voice and settings and conversation.is_waiting:
        switches.stop.button("Stop", icon=":material/stop_circle:", key="stop")
        answer_last(config, conversation, voice, settings, switches)
        st.rerun()


def draw_sidebar(config: PageConfig) -> tuple[Voice | None, Settings | None]:
    """Who answers and how; None for both if that cannot be, which the page then says."""
    try:
        with st.sidebar:
            voice = choose_voice(config, opened_models())
            return voice, choose_settings(voice.files)
    except (ValueError, OSError) as error:
        st.error(safe_markdown(str(error)), icon=":material/error:")
        return None, None


def draw_bottom(conversation: Conversation, voice: Voice | None) -> Switches:
    """The switches and the box; a message that was sent joins the conversation."""
    row = st.bottom.container(horizontal=True, vertical_alignment="center")
    # Not in `st.bottom` itself, which would cost the page its scrolling along with the answer.
    message = st.chat_input("Your message", max_chars=LONGEST_MESSAGE)
    if message and message.strip():
        conversation.ask(message)
    with row:
        with_history = st.toggle(
            "Use chat history",
            True,
            key="with_history",
            persist_state="session",
            disabled=conversation.is_waiting,
            help="Off: the next answer knows the system prompt and your message alone.",
        )
        compares = st.toggle(
            "Compare with the base",
            False,
            key="compares",
            persist_state="session",
            disabled=conversation.is_waiting or voice is None or voice.adapter is None,
            help="The model without the adapter answers too, side by side.",
        )
        return Switches(with_history, compares, st.empty())


def draw_keeping(conversation: Conversation) -> None:
    """What can be done with the conversation as a whole."""
    rows = as_jsonl(conversation)
    st.download_button(
        "Save as training data",
        rows,
        "chat.jsonl",
        "application/jsonl",
        icon=":material/download:",
        disabled=not rows,
        on_click="ignore",
        width="stretch",
        help="Conversations in ShareGPT form, for `python train.py --data chat.jsonl`.",
    )
    if left_out := not_learnt(conversation):
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        st.caption(f"Not among them: {reasons}. Correct an answer to keep it.")
    st.button(
        "Clear the chat",
        icon=":material/delete:",
        disabled=not conversation.exchanges,
        on_click=conversation.clear,
        width="stretch",
    )


def draw_conversation(conversation: Conversation, voice: Voice | None) -> None:
    """Everything that was said so far, or what to begin with."""
    if not conversation.exchanges:
        draw_welcome(conversation, voice)
    if conversation.let_go:
        st.caption(f"{conversation.let_go:,} older exchanges are no longer kept.")
    for exchange in conversation.exchanges:
        draw_question(exchange)
        if exchange.answers:
            draw_answers(exchange, conversation, opened_models(), conversation.is_waiting)


def draw_welcome(conversation: Conversation, voice: Voice | None) -> None:
    """What an empty chat shows."""
    if voice is None:
        return
    st.header("Say something")
    st.markdown(safe_markdown(f"**{voice.files.name}** answers, {adapter_in_words(voice)}."))
    if voice.files.name == "demo":
        st.markdown(
            "The demo is a tiny model that knows a made-up world: sixty people, sums, counting, "
            "opposites, colours. Try:"
        )
        with st.container(horizontal=True):
            for question in DEMO_QUESTIONS:
                st.button(question, on_click=conversation.ask, args=(question,))


def adapter_in_words(voice: Voice) -> str:
    """With which adapter, if any."""
    return "without an adapter" if voice.adapter is None else f"with the adapter {voice.label}"


def answer_last(
    config: PageConfig,
    conversation: Conversation,
    voice: Voice,
    settings: Settings,
    switches: Switches,
) -> None:
    """Writes the answer to the last question, below it."""
    exchange = conversation.exchanges[-1]
    try:
        requests = begin(conversation, voice, settings, switches.with_history, switches.compares)
        engine = engine_of(config.device, config.dtype)
    except ValueError as error:
        fail(exchange, voice.label, str(error))
        return
    labels = [answer.by for answer in exchange.answers]
    write(engine, requests, exchange, writing_places(len(labels), labels))
