"""How far a download is, told to whoever asked for it. Needs nothing of the Hub's client."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

# The kind of progress bar that a download gets; None for huggingface_hub's own, on stderr.
BAR: ContextVar[type[tqdm] | None] = ContextVar("BAR", default=None)


@contextmanager
def download_bars(show: Callable[[str, float, float], None]) -> Iterator[None]:
    """Within this context downloads tell `show` how far they are, instead of stderr.

    Args:
        show: is called ten times a second, at most, with the name of the file, the bytes that are
            there, and those that there will be. It may raise to break the download off.
    """

    class Bar(tqdm):
        monitor_interval = 0  # else another thread would call it, too

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"file": io.StringIO()})

        def display(self, *args: Any, **kwargs: Any) -> None:
            show(self.desc.removesuffix(": "), self.n, self.total or 0)

    before = BAR.set(Bar)
    try:
        yield
    finally:
        BAR.reset(before)
