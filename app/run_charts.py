"""Pictures of runs: loss, learning rate, gradients and speed over each other, and of their data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from app.run_curves import RunCurves
from app.run_data import DataTables

# Each is told from white and from black alike, with a contrast of at least 3 to 1.
COLOURS = (
    "#2f7ed8", "#d9661f", "#1a9850", "#a855f7", "#d6336c", "#0d9488", "#a17a00", "#7a828e",
)  # fmt: skip
AXES = {"step": "Steps", "tokens": "Tokens", "seconds": "Time"}
PLAIN_NUMBER, SHORT_NUMBER = ",d", "~s"
MOST_POINTED_AT = 300  # of a chart's points
LOG_TICKS = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)]
UNITS = ((3 * 3600, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))


def loss_chart(
    runs: Sequence[RunCurves], colours: Mapping[str, str], axis: str, logarithmic: bool
) -> alt.LayerChart:
    """The loss of each step, pale; smoothed, thick; and of the held-out conversations, as dots."""
    steps, held_out, x = tables_on(axis, runs)
    if logarithmic:  # on which there is no 0
        losses = ["loss", "smoothed"]
        steps[losses] = steps[losses].where(steps[losses] > 0)
        held_out = held_out[held_out["held_out"] > 0]
        scale, ticks = alt.Scale(type="log", nice=False), labelled("~g", values=LOG_TICKS)
    else:
        scale, ticks = alt.Scale(zero=False), labelled("~r", tickCount=6)

    def height(column: str) -> alt.Y:
        return alt.Y(f"{column}:Q", scale=scale, axis=ticks).title("Loss, nats per token")

    line = alt.Chart(steps).encode(x=x, color=colour(colours))
    dots = alt.Chart(held_out).encode(x=x, color=colour(colours), y=height("held_out"))
    tooltips = [
        *where_it_is(runs),
        alt.Tooltip("loss:Q", title="Loss", format=".4f"),
        alt.Tooltip("smoothed:Q", title="Loss, smoothed", format=".4f"),
    ]
    at_evaluation = [
        *where_it_is(runs),
        alt.Tooltip("held_out:Q", title="Held-out loss", format=".4f"),
    ]
    of_steps = [
        line.mark_line(strokeWidth=1, opacity=0.4).encode(y=height("loss")),
        line.mark_line(strokeWidth=2.5).encode(y=height("smoothed")),
        pointed_at(steps, {"x": x, "y": height("smoothed"), "color": colour(colours)}, tooltips),
    ]
    of_evaluations = [
        dots.mark_line(strokeWidth=1.5, strokeDash=[4, 3]),
        dots.mark_point(filled=True, size=70, opacity=1).encode(tooltip=at_evaluation),
    ]
    layers = of_steps * bool(len(steps)) + of_evaluations * bool(len(held_out))
    return alt.LayerChart(layer=layers, height=340)


def curve_chart(
    runs: Sequence[RunCurves], colours: Mapping[str, str], axis: str, column: str, number: str
) -> alt.LayerChart:
    """One column of the steps, whose numbers are written in the format `number`."""
    steps, _, x = tables_on(axis, runs)
    height = alt.Y(f"{column}:Q", axis=labelled(number, tickCount=4)).title(None)
    encoded = {"x": x, "y": height, "color": colour(colours, legend=False)}
    tooltips = [*where_it_is(runs), alt.Tooltip(f"{column}:Q", title="Value", format=number)]
    line = alt.Chart(steps).mark_line(strokeWidth=1.5).encode(**encoded)
    layers = [line, pointed_at(steps, encoded, tooltips)]
    return alt.LayerChart(layer=layers, height=180)


def tables_on(axis: str, runs: Sequence[RunCurves]) -> tuple[pd.DataFrame, pd.DataFrame, alt.X]:
    """Steps and evaluations of all runs, one below the other, and the axis they stand on."""
    steps = pd.concat([run.steps.assign(run=run.name) for run in runs], ignore_index=True)
    held_out = pd.concat([run.evaluations.assign(run=run.name) for run in runs], ignore_index=True)
    title, number = AXES[axis], SHORT_NUMBER if axis == "tokens" else PLAIN_NUMBER
    unit = 1
    if axis == "seconds":
        longest = steps["seconds"].max() if len(steps) else 0
        unit, name = next((size, name) for least, size, name in UNITS if longest >= least)
        title, number = f"Training time, {name}", "~g"
    for table in (steps, held_out):
        table["x"] = table[axis] / unit
    place = labelled(number, tickCount=5, grid=False, labelFlush=True)
    return steps, held_out, alt.X("x:Q", axis=place, scale=alt.Scale(nice=False)).title(title)


def labelled(number: str, **more: Any) -> alt.Axis:
    """An axis each of whose labels is in this format by itself: 0 and 50k, not 0k and 50k."""
    return alt.Axis(labelExpr=f"format(datum.value, '{number}')", **more)


def colour(colours: Mapping[str, str], legend: bool = True) -> alt.Color:
    """A run's colour; what it is called is said where there are several."""
    names = alt.Legend(orient="top", title=None, columns=2, labelLimit=150, symbolOpacity=1)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("run:N", scale=scale, legend=names if legend and len(colours) > 1 else None)


def where_it_is(runs: Sequence[RunCurves]) -> list[alt.Tooltip]:
    """What every tooltip begins with."""
    name = [alt.Tooltip("run:N", title="Run")] if len(runs) > 1 else []
    return [
        *name,
        alt.Tooltip("step:Q", title="Step", format=PLAIN_NUMBER),
        alt.Tooltip("tokens:Q", title="Tokens", format=PLAIN_NUMBER),
    ]


def pointed_at(
    steps: pd.DataFrame, encoded: Mapping[str, Any], tooltips: Sequence[alt.Tooltip]
) -> alt.Chart:
    """The point next to the mouse, which tells its numbers.

    Every point is an element of the page, and so is the area in which it is the nearest: of long
    curves only some can be pointed at.
    """
    some = steps.iloc[:: math.ceil(len(steps) / MOST_POINTED_AT) or 1]
    nearest = alt.selection_point(nearest=True, on="pointermove", fields=["step", "run"])
    shown = alt.when(nearest, empty=False).then(alt.value(1)).otherwise(alt.value(0))
    return (
        alt.Chart(some)
        .mark_point(filled=True, size=60, aria=False)
        .encode(**encoded, opacity=shown, tooltip=list(tooltips))
        .add_params(nearest)
    )


def lengths_chart(data: DataTables) -> alt.Chart:
    """How long the conversations are, in bins that double."""
    order = data.lengths.sort_values("order")["length"].drop_duplicates().tolist()
    return (
        alt.Chart(data.lengths)
        .mark_bar(cornerRadiusEnd=3)
        .encode(
            x=alt.X("length:N", sort=order, axis=alt.Axis(labelAngle=0, labelOverlap=True)).title(
                "Tokens of a conversation"
            ),
            y=alt.Y("rows:Q", axis=labelled(PLAIN_NUMBER, tickCount=4)).title("Conversations"),
            color=source_colour(data),
            tooltip=[
                alt.Tooltip("source:N", title="Data"),
                alt.Tooltip("length:N", title="Tokens"),
                alt.Tooltip("rows:Q", title="Conversations", format=PLAIN_NUMBER),
            ],
        )
        .properties(height=260)
    )


def dropped_chart(data: DataTables) -> alt.Chart:
    """How many rows were dropped, by reason."""
    above_its_bar = alt.Axis(
        labelAlign="left", labelPadding=0, labelOffset=-16, labelLimit=400, ticks=False, zindex=1
    )
    return (
        alt.Chart(data.dropped)
        .mark_bar(cornerRadiusEnd=3, size=10)
        .encode(
            y=alt.Y("reason:N", sort="-x", axis=above_its_bar).title(None),
            x=alt.X(
                "rows:Q", axis=labelled(PLAIN_NUMBER, tickMinStep=1, tickCount=4, grid=False)
            ).title("Rows"),
            color=source_colour(data).legend(None),
            tooltip=[
                alt.Tooltip("source:N", title="Data"),
                alt.Tooltip("reason:N", title="Reason"),
                alt.Tooltip("rows:Q", title="Rows", format=PLAIN_NUMBER),
            ],
        )
        .properties(height=60 + 48 * data.dropped["reason"].nunique())
    )


def source_colour(data: DataTables) -> alt.Color:
    """A data set's colour."""
    names = data.sources["source"].tolist()
    legend = alt.Legend(orient="top", title=None, columns=2, labelLimit=150)
    range_ = [COLOURS[place % len(COLOURS)] for place in range(len(names))]
    scale = alt.Scale(domain=names, range=range_)
    return alt.Color("source:N", scale=scale, legend=legend if len(names) > 1 else None)
