"""Stopping a run politely: SIGINT (Ctrl-C) and SIGTERM (a preempted machine, torchrun) ask for it.

The handler only takes a note; the loop looks at it between two steps, where the state is whole, and
saves. Whoever asks a second time does not want to wait: the process ends at once, which harms
nothing, since files are published whole or not at all.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A context in which the two signals are noted.

    Attributes:
        signal: the number of the one that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Interrupt:
        self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: calls nothing but the system."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        os.write(2, b"\nstopping after this step, and saving; a second time stops at once\n")

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended; 0 if none came."""
        return 128 + self.signal if self.signal else 0
