"""The controls in the sidebar: how to answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app.model_files import ModelFiles
from model.generation_config import SamplingConfig

USUAL_LENGTH = 512


@dataclass(frozen=True)
class Settings:
    """How to answer.

    Attributes:
        system: what the model is told before the conversation.
        sampling: how tokens are chosen.
        max_new_tokens: the longest answer.
        seed: fixes the draws.
    """

    system: str
    sampling: SamplingConfig
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Control:
    """A slider for one field of `SamplingConfig`."""

    name: str
    label: str
    low: float
    high: float
    step: float
    help: str
    needs_draws: bool = True


CONTROLS = (
    # The first, since the others depend on it.
    Control(
        "temperature",
        "Temperature",
        *(0.0, 2.0, 0.05),
        "0 always takes the likeliest token; the higher, the further it strays from it.",
        needs_draws=False,
    ),
    Control(
        "top_p",
        "Top-p",
        *(0.01, 1.0, 0.01),
        "Draw among the likeliest tokens, this probable together.",
    ),
    Control("top_k", "Top-k", *(0, 200, 1), "Draw among this many likeliest tokens; 0 for all."),
    Control(
        "min_p",
        "Min-p",
        *(0.0, 1.0, 0.01),
        "Drop tokens below this fraction of the likeliest's probability.",
    ),
    Control(
        "repetition_penalty",
        "Repetition penalty",
        *(0.5, 2.0, 0.05),
        "Above 1 makes tokens that occurred already less likely.",
        needs_draws=False,
    ),
)


def choose_settings(files: ModelFiles) -> Settings:
    """Draws the controls; each begins with what the model's own files recommend."""
    system = st.text_area(
        "System prompt",
        key="system",
        persist_state="session",
        max_chars=20_000,
        help="What the model is told before the conversation; empty for nothing.",
    )
    with st.expander("How to answer"):
        sampling = files.sampling
        for control in CONTROLS:
            value = draw(control, files, is_greedy=sampling.temperature == 0)
            sampling = dataclasses.replace(sampling, **{control.name: value})
        longest = max(2, files.context // 2)  # a slider needs two values
        max_new_tokens = st.slider(
            "Longest answer",
            1,
            longest,
            min(USUAL_LENGTH, longest),
            key=f"longest answer of {files.folder}",
            persist_state="session",
            help="In tokens. The prompt has the rest of the context.",
        )
        seed = st.number_input(
            "Seed",
            0,
            2**53 - 1,
            0,
            key="seed",
            persist_state="session",
            help="The same seed draws the same answer; answering again takes the next one.",
        )
    return Settings(system or "", sampling, max_new_tokens, seed)


def draw(control: Control, files: ModelFiles, is_greedy: bool) -> Any:
    """One slider. Another model has other defaults, so it has another slider."""
    own = getattr(files.sampling, control.name)
    if control.name == "top_k":
        own = min(own, files.config.vocab_size)  # more there are not
    return st.slider(
        control.label,
        min(control.low, own),
        max(control.high, own),
        own,
        control.step,
        key=f"{control.name} of {files.folder}",
        persist_state="session",
        disabled=control.needs_draws and is_greedy,
        help=control.help + " No effect at temperature 0." * control.needs_draws,
    )
