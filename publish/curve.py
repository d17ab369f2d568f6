"""The loss of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from lora.progress import SMOOTHING


def draw_curve(records: Sequence[Mapping[str, Any]]) -> bytes | None:
    """A PNG of the training loss, as it was and smoothed, and of the held-out loss.

    Args:
        records: of metrics.jsonl.

    Returns:
        The same bytes for the same records; None if they hold no loss.
    """
    trained = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    held_out = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    if not trained:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second: only for this
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*trained, strict=True)
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label="each step")
    axes.plot(steps, smoothed(losses), color="#08519c", linewidth=2, label="smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="#d94801", label="held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per target token)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential moving average, divided by its weights' sum: Kingma & Ba, arXiv:1412.6980, § 3.

    Without the division it would begin at zero.
    """
    average, curve = 0.0, []
    for number, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        curve.append(average / (1 - SMOOTHING**number))
    return curve
