"""The chat page: what was said, the switches, a box for what comes next.

Streamlit runs `chat_page` anew at every click. A run that finds an answer unfinished knows that
the run which was writing it is no more (Stop, another click, a closed tab): what there is of it
stays, marked as stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from streamlit.components.v2 import component

from app.conversation import Conversation
from app.exchange import LONGEST_MESSAGE, draw_answers, draw_question, writing_places
from app.model_files import ModelFiles
from app.page_config import PageConfig
from app.safe_markdown import safe_markdown
from app.settings import Settings, choose_settings
from app.training_rows import as_jsonl, training_rows
from app.voice import Voice, choose_voice
from app.writing import begin, write
from data.command_line import one_line

if TYPE_CHECKING:
    from app.engine import Engine

SHOW_THE_NEWEST = component(
    "show_the_newest",
    js="""export default () => {
        document.querySelector("[data-testid=stAppScrollToBottomContainer]")?.scrollTo(0, 1e9);
    }""",
)
DEMO_QUESTIONS = ("Where does Anna live?", "My name is Maja.", "What is 7 plus 5?")


@st.cache_resource(show_spinner=False)
def engine_of(device: str, dtype: str, quantize: str | None) -> Engine:
    """The server's engine. PyTorch takes a second to import, which only an answer needs."""
    from app.engine import Engine

    return Engine(device, dtype, quantize)


@st.cache_resource(show_spinner=False)
def opened_models() -> dict[str, ModelFiles]:
    """The models that any visitor has opened, by name."""
    return {}


def chat_page(config: PageConfig) -> None:
    """Draws the page once, and writes the answer if a question waits for one."""
    conversation: Conversation = st.session_state.setdefault("conversation", Conversation())
    conversation.settle()
    voice, settings, trouble = draw_sidebar(config)
    switches = st.bottom.container(horizontal=True, vertical_alignment="center")
    # Not in `st.bottom` itself, which would cost the page its scrolling along with the answer.
    message = st.chat_input("Your message", max_chars=LONGEST_MESSAGE)
    if message and message.strip():
        conversation.ask(message)
    if trouble:
        st.error(safe_markdown(trouble), icon=":material/error:")
        conversation.end_unanswered("failed", trouble)
    with switches:
        with_history, compares = draw_switches(voice, is_busy=conversation.is_waiting)
        if conversation.is_waiting:
            icon = ":material/stop_circle:"
            st.button("Stop", icon=icon, key="stop", on_click=conversation.stop)
        if voice:
            st.caption(safe_markdown(f"{voice.files.name}, {voice.label}"))
    with st.sidebar:
        draw_keeping(conversation, "demo" if voice is None else voice.files.name)
    draw_conversation(conversation, voice)
    if voice and settings and conversation.is_waiting:
        answer_last(config, conversation, voice, settings, with_history, compares)
        st.rerun()


def draw_sidebar(config: PageConfig) -> tuple[Voice | None, Settings | None, str]:
    """Who answers and how; neither if that cannot be, and why."""
    try:
        with st.sidebar:
            voice = choose_voice(config, opened_models())
            return voice, choose_settings(voice.files), ""
    except (ValueError, OSError) as error:
        return None, None, one_line(str(error))


def draw_switches(voice: Voice | None, is_busy: bool) -> tuple[bool, bool]:
    """Whether the next answer knows the conversation, and whether the base is to answer too."""
    with_history = st.toggle(
        "Use chat history",
        True,
        key="with_history",
        persist_state="session",
        disabled=is_busy,
        help="Off: the next answer knows the system prompt and your message alone.",
    )
    compares = st.toggle(
        "Compare with the base",
        False,
        key="compares",
        persist_state="session",
        disabled=is_busy or voice is None or voice.adapter is None,
        help="The model without the adapter answers too, side by side.",
    )
    return with_history, compares


def draw_keeping(conversation: Conversation, model: str) -> None:
    """What can be done with the conversation as a whole."""
    rows, missing = training_rows(conversation)
    command = f"python train.py --model {model} --data chat.jsonl"
    st.download_button(
        "Save as training data",
        as_jsonl(rows),
        "chat.jsonl",
        "application/jsonl",
        icon=":material/download:",
        disabled=not rows,
        on_click="ignore",
        width="stretch",
        help=safe_markdown(f"Conversations in ShareGPT form, for `{command}`."),
    )
    if missing:
        reasons = ", ".join(f"{count} {reason}" for reason, count in missing.items())
        st.caption(f"Not in the file: {reasons}. A bad answer that is corrected is kept.")
    st.button(
        "Clear the chat",
        icon=":material/delete:",
        disabled=not conversation.exchanges,
        on_click=conversation.clear,
        width="stretch",
    )


def draw_conversation(conversation: Conversation, voice: Voice | None) -> None:
    """Everything that was said so far, or what to begin with."""
    welcome = st.empty()  # which clears it at once when there is something else to draw
    if voice and not conversation.exchanges:
        with welcome.container():
            draw_welcome(conversation, voice)
    if conversation.let_go:
        st.caption(f"{conversation.let_go:,} older exchanges are no longer kept.")
    for exchange in conversation.exchanges:
        draw_question(exchange)
        if exchange.answers:
            draw_answers(exchange, conversation, opened_models(), conversation.is_waiting)


def draw_welcome(conversation: Conversation, voice: Voice) -> None:
    """What an empty chat shows."""
    st.header("Say something", anchor=False)
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
    with_history: bool,
    compares: bool,
) -> None:
    """Writes the answer to the last question, below it."""
    try:
        engine = engine_of(config.device, config.dtype, config.quantize)
        begun = begin(conversation, voice, settings, with_history, compares)
    except ValueError as error:
        conversation.end_unanswered("failed", str(error))
        return
    places = writing_places([answer.by for answer, _ in begun])
    SHOW_THE_NEWEST(data=conversation.exchanges[-1].key)
    write(engine, begun, places)
