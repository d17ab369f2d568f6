"""Stopping a run politely: Ctrl-C, a preempted machine, torchrun and a closed terminal ask for it.

They send SIGINT, SIGTERM (the machine and torchrun) and SIGHUP.

The handler only takes a note. The loop looks at it before every forward pass, leaves out a step
that is not whole, and saves. Whoever asks a second time does not want to wait: the process ends at
once, which harms nothing, since files are published whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOTED = b"\nstopping and saving; a second time stops at once\n"


class Interrupt:
    """A context in which these signals are noted, but SIGHUP not under nohup, which ignores it.

    Attributes:
        signal: the number of the one that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Interrupt:
        is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        noted = SIGNALS[:-1] if is_nohup else SIGNALS
        self.before = {number: signal.signal(number, self.note) for number in noted}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: calls nothing but the system.

        A terminal that closes says so twice, by itself and by its shell, which is no impatience.
        """
        if self.signal and number != signal.SIGHUP:
            os._exit(128 + number)
        self.signal = self.signal or number
        if number == signal.SIGHUP:
            leave_terminal()
        with contextlib.suppress(OSError):
            os.write(2, NOTED)

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended; 0 if none came."""
        return 128 + self.signal if self.signal else 0


def leave_terminal() -> None:
    """Lets output to a terminal go nowhere: it is gone, and to write there would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if stat.S_ISCHR(os.fstat(output).st_mode):  # isatty denies it of one that is gone
            os.dup2(nowhere, output)
    os.close(nowhere)
