"""An answer from the question to its last token, on the page and in the conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from streamlit.delta_generator import DeltaGenerator

from app.conversation import Answer, Conversation, prompt_that_fits
from app.safe_markdown import safe_markdown
from app.settings import Settings
from app.voice import BASE_ONLY, Voice

if TYPE_CHECKING:
    from app.engine import Engine, Request, Written

SECONDS_BETWEEN_UPDATES = 0.05
CURSOR = "▍"


Begun = list[tuple[Answer, "Request"]]


def begin(
    conversation: Conversation,
    voice: Voice,
    settings: Settings,
    with_history: bool,
    compares: bool,
) -> Begun:
    """Takes up the last question: it gets empty answers, returned with what to ask the engine for.

    Raises:
        ValueError: if the question has no room in the model's context.
    """
    voices = [voice]
    if compares and voice.adapter is not None:
        voices.append(Voice(voice.files, None, BASE_ONLY))
    begun = [begin_one(conversation, each, settings, with_history) for each in voices]
    exchange = conversation.exchanges[-1]
    exchange.answer = begun[0][0]
    exchange.base_answer = begun[1][0] if len(begun) > 1 else None
    return begun


def begin_one(
    conversation: Conversation, voice: Voice, settings: Settings, with_history: bool
) -> tuple[Answer, Request]:
    """An empty answer by one voice, and the request for it. Raises ValueError as `begin` does."""
    from app.engine import Request

    exchange = conversation.exchanges[-1]
    prompt = prompt_that_fits(
        voice.files.chat_format,
        settings.system,
        conversation.history(by_base=voice.adapter is None) if with_history else [],
        exchange.message,
        voice.files.context - settings.max_new_tokens,
    )
    answer = Answer(
        by=voice.label,
        model=voice.files.name,
        saw=prompt.messages,
        with_history=with_history,
        left_out=prompt.left_out,
    )
    request = Request(
        files=voice.files,
        adapter=voice.adapter,
        ids=prompt.ids,
        sampling=settings.sampling,
        seed=settings.seed + exchange.attempt,
        max_new_tokens=settings.max_new_tokens,
        conversation=conversation.key if with_history else None,
    )
    return answer, request


def write(engine: Engine, begun: Begun, places: Sequence[DeltaGenerator]) -> None:
    """Lets the engine write the answers, each in its place on the page.

    They grow as they are written, so that what there is of them stays if this run is interrupted.

    Args:
        engine: the server's.
        begun: the answers, with their requests.
        places: an empty place for each.
    """
    answers = [answer for answer, _ in begun]

    def tell(what: str) -> None:
        places[0].caption(safe_markdown(what))

    try:
        with closing(engine.answer([request for _, request in begun], tell)) as pieces:
            follow(pieces, answers, lambda: show(answers, places))
    except (ValueError, OSError) as error:
        for answer in answers:
            if answer.state == "writing":
                answer.state, answer.trouble = "failed", str(error)


def follow(
    pieces: Iterable[Written], answers: Sequence[Answer], update: Callable[[], None]
) -> None:
    """Adds what is written to the answers, and has the page updated now and then.

    Ends if an answer is no longer to be written: another run of the page can settle it meanwhile.
    """
    updated = 0.0
    for piece in pieces:
        answer = answers[piece.which]
        if answer.state == "stopped":
            return
        answer.text += piece.text
        if piece.tokens == 1 and not answer.tokens:
            answer.to_first = piece.seconds
        answer.tokens, answer.seconds = piece.tokens, piece.seconds
        if piece.is_cut:
            answer.state = "cut"
        if time.monotonic() - updated > SECONDS_BETWEEN_UPDATES:
            update()
            updated = time.monotonic()
    for answer in answers:
        if answer.state == "writing":
            answer.state = "done"
    update()


def show(answers: Sequence[Answer], places: Sequence[DeltaGenerator]) -> None:
    """Draws what there is of the answers."""
    for answer, place in zip(answers, places, strict=True):
        cursor = CURSOR if answer.state == "writing" else ""
        place.markdown(safe_markdown(answer.text) + cursor, anchors=False)
