"""The pickers in the sidebar: which model answers, and with which adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from app.model_files import (
    ModelFiles,
    Tuned,
    open_model,
    same_folder,
    same_model,
    tuned_from,
    tuned_in,
)
from app.page_config import PageConfig
from app.safe_markdown import safe_markdown
from data.bars import download_bars
from lora.choose_adapter import find_adapter
from lora.choose_run import without_revision

BASE_ONLY = "base only"
MOST_OPEN = 4


@dataclass(frozen=True)
class Voice:
    """Who answers.

    Attributes:
        files: the model.
        adapter: the folder of its adapter; None for the model alone.
        label: the adapter's name, or that there is none.
    """

    files: ModelFiles
    adapter: Path | None
    label: str


def choose_voice(config: PageConfig, opened: dict[str, ModelFiles]) -> Voice:
    """Draws the pickers.

    Args:
        config: what the page begins with.
        opened: the models that were opened so far, by name; is added to.

    Raises:
        ValueError: if what was chosen cannot be used.
    """
    tuned, trouble = offered(config)
    if trouble:
        st.warning(safe_markdown(trouble))
    names = [config.model, *(t.model for t in tuned), "demo"]
    name = st.selectbox(
        "Model",
        list(dict.fromkeys(name for name in names if name)),
        key="model",
        persist_state="session",
        accept_new_options=True,
        help="The demo, a folder, or a model on the Hub: type in its id.",
    )
    if not name:
        raise ValueError("no model is chosen; pick one, or type in the id of one on the Hub")
    fitting = {t.label: t for t in tuned if t.model and same_model(name, t.model)}
    label = st.selectbox(
        "Adapter",
        [*fitting, BASE_ONLY],
        key=f"adapter of {name}",
        persist_state="session",
        accept_new_options=True,
        help="A run's result, one of its checkpoints, or a folder: type in its path.",
    )
    if not label or label == BASE_ONLY:
        return Voice(open_once(name, opened), None, BASE_ONLY)
    chosen = fitting.get(label) or tuned_from(label)
    files = open_once(pinned(name, chosen), opened)
    return Voice(files, find_adapter(chosen.folder), chosen.label)


def offered(config: PageConfig) -> tuple[list[Tuned], str]:
    """The adapters to choose from, the one that the page begins with first; and if it is gone, why.

    A model that was given with an adapter is taken for its base, whatever the adapter calls that.
    """
    tuned = [t for t in tuned_in(Path(config.runs)) if t.label != BASE_ONLY]
    if config.adapter is None:
        return tuned, ""
    try:
        first = tuned_from(config.adapter)
    except (ValueError, OSError) as error:
        return tuned, str(error)
    if config.model:
        first = Tuned(first.label, first.folder, config.model)
    elif first.model is None:
        return tuned, f"{config.adapter} does not say which model it is for; add --model"
    return [first, *(t for t in tuned if not same_folder(t.folder, first.folder))], ""


def pinned(name: str, chosen: Tuned) -> str:
    """The model's name with the commit that the adapter was trained on, if it is on the Hub."""
    is_pinned = without_revision(name) != name
    is_its_own = chosen.model is not None and same_model(name, chosen.model)
    if is_pinned or not is_its_own or chosen.revision is None:
        return name
    return f"{name}@{chosen.revision}"


def open_once(name: str, opened: dict[str, ModelFiles]) -> ModelFiles:
    """The model of that name, opened when it is first chosen; with its downloads on the page."""
    files = opened.get(name)
    if files is None:
        place = st.empty()

        def show(file: str, done: float, total: float) -> None:
            share = min(1.0, done / total) if total else 0.0
            text = f"{safe_markdown(file)}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
            place.progress(share, text=text)

        place.caption("Opening the model …")
        with download_bars(show):
            files = opened[name] = open_model(name)
        place.empty()
        for forgotten in list(opened)[:-MOST_OPEN]:
            opened.pop(forgotten, None)
    return files
