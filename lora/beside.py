"""Work that goes on in a thread while its caller waits for something else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Starts the work; returns what waits for its end and gives what it returned, or raised.

    Where no thread is to be had, by a limit of the system, the work is done when it is asked for.
    """
    thread = ThreadPoolExecutor(1)
    try:
        return thread.submit(work).result
    except RuntimeError:
        return work
    finally:
        thread.shutdown(wait=False)
