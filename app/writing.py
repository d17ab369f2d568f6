"""An answer from the question to its last token, on the page and in the conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from streamlit.delta_generator import DeltaGenerator

from app.conversation import Answer, Conversation, Exchange, prompt_that_fits
from app.safe_markdown import safe_markdown
from app.settings import Settings
from app.voice import BASE_ONLY, Voice

if TYPE_CHECKING:
    from app.engine import Engine, Request, Written

SECONDS_BETWEEN_UPDATES = 0.05
CURSOR = "▍"


def begin(
    conversation: Conversation,
    voice: Voice,
    settings: Settings,
    with_history: bool,
    compares: bool,
) -> list[Request]:
    """Takes up the last question: its exchange gets empty answers, of which these are the requests.

    Raises:
        ValueError: if the question has no room in the model's context.
    """
    voices = [voice]
    if compares and voice.adapter is not None:
        voices.append(Voice(voice.files, None, BASE_ONLY))
    begun = [begin_one(conversation, each, settings, with_history) for each in voices]
    answers = [answer for answer, _ in begun]
    exchange = conversation.exchanges[-1]
    exchange.answer, exchange.base_answer = answers[0], answers[1] if answers[1:] else None
    return [request for _, request in begun]


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


def fail(exchange: Exchange, label: str, reason: str) -> None:
    """Notes in place of the answers why there are none, or why they went no further."""
    if exchange.answer is None:
        exchange.answer = Answer(by=label, model="", saw=(), with_history=True)
    for answer in exchange.answers:
        if answer.state == "writing":
            answer.state, answer.trouble = "failed", reason


def write(
    engine: Engine,
    requests: Sequence[Request],
    exchange: Exchange,
    places: Sequence[DeltaGenerator],
) -> None:
    """Lets the engine write the answers, each in its place on the page.

    Args:
        engine: the server's.
        requests: of the exchange's answers, in their order.
        exchange: whose answers grow, so that what is written stays if this run is interrupted.
        places: an empty place for each.
    """
    clock = Clock()

    def tell(what: str) -> None:
        places[0].caption(safe_markdown(what))
        clock.start()

    try:
        with closing(engine.answer(requests, tell)) as pieces:
            follow(pieces, exchange.answers, clock, lambda: show(exchange.answers, places))
    except (ValueError, OSError) as error:
        fail(exchange, "", str(error))


def follow(
    pieces: Iterable[Written],
    answers: Sequence[Answer],
    clock: Clock,
    update: Callable[[], None],
) -> None:
    """Adds what is written to the answers, and has the page updated now and then."""
    updated = 0.0
    for piece in pieces:
        answer = answers[piece.which]
        if answer.state != "writing":  # a later run of the page has taken over
            return
        answer.text += piece.text
        clock.note(answer, piece.tokens)
        if piece.is_cut:
            answer.state = "cut"
        if time.monotonic() - updated > SECONDS_BETWEEN_UPDATES:
            update()
            updated = time.monotonic()
    for answer in answers:
        if answer.state == "writing":
            answer.state = "done"
    update()


class Clock:
    """Measures how long the first token takes, and the others."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begins anew: waiting for others or for the model to be loaded does not count."""
        self.started = time.perf_counter()

    def note(self, answer: Answer, tokens: int) -> None:
        """Notes that the answer has so many tokens now."""
        now = time.perf_counter() - self.started
        if tokens and not answer.tokens:
            answer.to_first = now
        if tokens > answer.tokens:
            answer.seconds = now - answer.to_first
        answer.tokens = tokens


def show(answers: Sequence[Answer], places: Sequence[DeltaGenerator]) -> None:
    """Draws what there is of the answers."""
    for answer, place in zip(answers, places, strict=True):
        cursor = CURSOR if answer.state == "writing" else ""
        place.markdown(safe_markdown(answer.text) + cursor, anchors=False)
