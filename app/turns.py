"""Whose turn it is: one answer at a time, in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LOOKS = 0.2


class Turns:
    """A queue of threads before one thing that only one may use."""

    def __init__(self) -> None:
        self.line: deque[object] = deque()
        self.changed = threading.Condition()

    @contextmanager
    def turn(self, waiting: Callable[[int], None]) -> Iterator[None]:
        """Within this context it is the caller's turn.

        Args:
            waiting: is told, a few times a second, how many are before the caller. It may raise to
                give up the place.
        """
        ticket = object()
        with self.changed:
            self.line.append(ticket)
        try:
            while ahead := self.ahead(ticket):
                waiting(ahead)
                with self.changed:
                    if self.line[0] is not ticket:
                        self.changed.wait(SECONDS_BETWEEN_LOOKS)
            yield
        finally:
            with self.changed:
                self.line.remove(ticket)
                self.changed.notify_all()

    def ahead(self, ticket: object) -> int:
        """How many stand before the one with this ticket."""
        with self.changed:
            return self.line.index(ticket)
