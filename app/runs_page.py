"""The page of the runs: what training did, and does at this moment.

All names, flags and answers come from files. They go where nothing in them is Markdown or HTML:
into plain text, tables, charts and the options of a list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.run_charts import (
    AXES,
    COLOURS,
    curve_chart,
    dropped_chart,
    lengths_chart,
    loss_chart,
)
from app.run_curves import (
    RunCurves,
    answers_to,
    flags_that_differ,
    is_training,
    list_runs,
    read_run,
    version,
)
from app.run_data import DataTables, read_data

SECONDS_BETWEEN_LOOKS = 5  # at a run that is still training
WINDOWS = (1, 5, 20, 50, 200, 1000)  # of the smoothed loss, in steps
SMALL_CHARTS = (
    ("Learning rate", "lr", ".2~e"),
    ("Gradient norm", "grad_norm", "~r"),
    ("Tokens a second", "tokens_per_second", ",d"),
)
SOURCE_COLUMNS: dict[str, Any] = {
    "source": "Data",
    "read": st.column_config.NumberColumn("Rows read", format="localized"),
    "kept": st.column_config.NumberColumn("Kept", format="localized"),
    "dropped": st.column_config.NumberColumn("Dropped", format="localized"),
    "cut": st.column_config.NumberColumn(
        "Cut", format="localized", help="Longer than --max-length"
    ),
    "tokens": st.column_config.NumberColumn("Tokens", format="localized"),
    "learnt": st.column_config.NumberColumn("To be learnt", format="percent"),
}


def runs_page(runs: Path) -> None:
    """Draws the page of the runs in the folder `runs`."""
    st.title("Runs")
    found = list_runs(runs)
    if not found:
        st.info("There are no runs yet. This makes one, in about two minutes, without a GPU:")
        st.code("python train.py --demo --lr 2e-4", language="bash")
        return
    chosen = choose_runs(list(found))
    if not chosen:
        st.info("Choose a run to see how it went.")
        return
    folders = {name: found[name] for name in chosen}
    goes_on = any_training(folders)
    look_again = SECONDS_BETWEEN_LOOKS if goes_on else None
    st.fragment(run_every=look_again)(show_runs)(folders, goes_on)


def choose_runs(names: Sequence[str]) -> list[str]:
    """Asks for the runs to show; at first the newest."""
    st.session_state.setdefault("runs_shown", names[:1])
    return st.multiselect(
        "Runs to show, over each other",
        names,
        key="runs_shown",
        persist_state="session",
        max_selections=len(COLOURS),
        help="The newest stands first.",
    )


def show_runs(folders: Mapping[str, Path], goes_on: bool) -> None:
    """All that is shown of these runs; again and again while one of them is training."""
    if goes_on and not any_training(folders):
        st.rerun()  # without looking again
    window, axis, logarithmic = choose_view(folders)
    shown = [kept_run(folder, version(folder), window) for folder in folders.values()]
    for run, folder in zip(shown, folders.values(), strict=True):
        summarize(run, is_training(folder))
    with_steps = [run for run in shown if len(run.steps) or len(run.evaluations)]
    if with_steps:
        show_curves(with_steps, axis, logarithmic)
    show_flags(shown)
    show_samples(shown)
    show_data(folders)


@st.cache_data(max_entries=64, show_spinner=False, hash_funcs={Path: bytes})
def kept_run(folder: Path, version: object, window: int) -> RunCurves:
    """The run as it was read when its files last changed."""
    return read_run(folder, window)


@st.cache_data(max_entries=64, show_spinner=False, hash_funcs={Path: bytes})
def kept_data(folder: Path, version: object) -> DataTables | str:
    """The run's data, or what is wrong with it."""
    try:
        return read_data(folder)
    except ValueError as error:
        return str(error)


def any_training(folders: Mapping[str, Path]) -> bool:
    """Whether one of the runs goes on at this moment."""
    return any(is_training(folder) for folder in folders.values())


def choose_view(folders: Mapping[str, Path]) -> tuple[int, str, bool]:
    """Asks for the window of the smoothed loss, the horizontal axis, and a logarithmic loss."""
    state = st.session_state
    if "runs_window" not in state:
        state["runs_window"] = fitting_window(folders.values())
    left, middle, right = st.columns((2, 2, 1), vertical_alignment="center")
    axis = left.radio(
        "Draw over",
        list(AXES),
        format_func=AXES.__getitem__,
        key="runs_axis",
        horizontal=True,
        persist_state="session",
        help="Time is that of the steps, without evaluations.",
    )
    window = middle.select_slider(
        "Smooth the loss over so many steps", WINDOWS, key="runs_window", persist_state="session"
    )
    logarithmic = right.toggle("Log scale", key="runs_logarithmic", persist_state="session")
    return window, axis, logarithmic


def fitting_window(folders: Iterable[Path]) -> int:
    """A window that smoothes what jumps about, and is short beside the longest of the runs."""
    runs = [kept_run(folder, version(folder), 1) for folder in folders]
    longest = max(run.steps_planned or run.steps_done for run in runs)
    return max(window for window in WINDOWS if window <= max(1, longest / 20))


def summarize(run: RunCurves, training: bool) -> None:
    """A run in one line, and what is wrong with its files."""
    planned = "" if run.steps_planned is None else f" of {run.steps_planned:,}"
    parts = [f"{run.steps_done:,}{planned} steps"]
    losses = [f"{loss:.4f}" for loss in run.evaluations["held_out"]]
    if losses:
        parts.append(f"held-out loss {' → '.join(losses[:1] + losses[1:][-1:])}")
    if math.isfinite(run.speed):
        parts.append(f"{run.speed:,.0f} tokens a second")
    if run.steps_left_out:
        parts.append(f"{run.steps_left_out:,} steps left out, whose gradients were not finite")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if training:
            st.badge("training", icon=":material/play_arrow:", color="green")
        elif run.is_finished:
            st.badge("finished", icon=":material/check:", color="blue")
        else:
            st.badge("stopped", icon=":material/pause:", color="gray")
        st.text(f"{run.name}: {', '.join(parts)}")
    for problem in run.problems:
        st.text(f"⚠ {run.name}: {problem}")


def show_curves(runs: Sequence[RunCurves], axis: str, logarithmic: bool) -> None:
    """The loss, and below it three smaller charts."""
    colours = choose_colours([run.name for run in runs])
    names, over = ", ".join(colours), AXES[axis].lower()
    st.subheader("Loss")
    st.caption("Pale: each step. Thick: smoothed. Dots: the conversations held out.")
    st.altair_chart(
        loss_chart(runs, colours, axis, logarithmic),
        key="runs_loss",
        alt=f"Loss over {over} of {names}: of each step, smoothed, and held out",
    )
    columns = st.columns(len(SMALL_CHARTS))
    for column, (title, name, number) in zip(columns, SMALL_CHARTS, strict=True):
        with column:
            st.markdown(f"**{title}**")
            st.altair_chart(
                curve_chart(runs, colours, axis, name, number),
                key=f"runs_{name}",
                alt=f"{title} over {over} of {names}",
            )


def choose_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each run, which it keeps while others come and go."""
    before = st.session_state.get("runs_colours", {})
    colours = {name: before[name] for name in names if name in before}
    free = [colour for colour in COLOURS if colour not in colours.values()]
    for name in names:
        colours.setdefault(name, free.pop(0) if name not in colours else "")
    st.session_state["runs_colours"] = colours
    return colours


def show_flags(runs: Sequence[RunCurves]) -> None:
    """The flags in which the runs differ, if there are several."""
    if len(runs) < 2:
        return
    st.subheader("Flags that differ")
    table = flags_that_differ(runs)
    if len(table):
        st.dataframe(table, alt="The flags in which the runs differ")
    else:
        st.caption("None: these runs were asked the same.")


def show_samples(runs: Sequence[RunCurves]) -> None:
    """What the runs answered to a prompt after a number of steps, beside each other."""
    prompts = list(dict.fromkeys(prompt for run in runs for prompt in run.samples["prompt"]))
    if not prompts:
        return
    st.subheader("Answers on the way")
    state = st.session_state
    if state.get("runs_prompt") not in prompts:
        state["runs_prompt"] = prompts[0]
    prompt = st.selectbox("Prompt", prompts, key="runs_prompt", persist_state="session")
    answers = answers_to(prompt, runs)
    step = choose_step(sorted(set(answers["step"].tolist())))
    asked = [run.name for run in runs if run.name in set(answers["run"])]
    for column, name in zip(st.columns(len(asked)), asked, strict=True):
        so_far = answers[(answers["run"] == name) & (answers["step"] <= step)]
        with column.container(border=True):
            if so_far.empty:
                st.caption("not asked yet")
                continue
            last = so_far.iloc[-1]
            if len(runs) > 1:
                st.text(name)
            st.caption(f"after {last['step']:,} steps")
            st.text(last["answer"])
    with st.expander("Every answer to this prompt"):
        st.dataframe(answers, hide_index=True, alt="Every answer to this prompt")


def choose_step(steps: Sequence[int]) -> int:
    """Asks after which step; who looks at the newest answer goes on to see the newest."""
    if len(steps) == 1:
        return steps[0]
    state = st.session_state
    if state.get("runs_step") not in steps or state["runs_step"] == state.get("runs_newest_step"):
        state["runs_step"] = steps[-1]
    state["runs_newest_step"] = steps[-1]
    return st.select_slider("After step", steps, key="runs_step", persist_state="session")


def show_data(folders: Mapping[str, Path]) -> None:
    """What a run's data was: counts, lengths, and what was dropped."""
    st.subheader("Data")
    names = list(folders)
    name = names[0]
    if len(names) > 1:
        state = st.session_state
        if state.get("runs_data") not in names:
            state["runs_data"] = name
        name = st.selectbox("Of run", names, key="runs_data", persist_state="session")
    data = kept_data(folders[name], version(folders[name]))
    if isinstance(data, str):
        st.text(data)
        return
    st.dataframe(
        data.sources,
        hide_index=True,
        column_config=SOURCE_COLUMNS,
        alt="Rows and tokens of each data set",
    )
    left, right = st.columns(2)
    with left:
        st.markdown("**How long the conversations are**")
        st.altair_chart(lengths_chart(data), key="runs_lengths", alt="Lengths of the conversations")
    with right:
        st.markdown("**Rows that were dropped**")
        if len(data.dropped):
            st.altair_chart(dropped_chart(data), key="runs_dropped", alt="Dropped rows by reason")
        else:
            st.caption("None: all rows could be learnt from.")
