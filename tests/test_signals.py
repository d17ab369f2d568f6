"""A closed terminal, nohup, and Ctrl-C before training: see test_resume_kills.py for the others.

Seen to fail when: SIGHUP was not noted; the second one of a closed terminal ended the process;
output still went to the terminal that was gone; SIGHUP was noted under nohup; Ctrl-C raised
KeyboardInterrupt during imports.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from small_runs import ROOT, flags, forked, outcome, status

import train
from lora.run_folder import RunFolder


def test_a_closed_terminal_saves_and_the_run_goes_on_in_the_same_bits(place):
    """Nothing can be printed any more."""
    given = flags(output="hung-up", resume=True)
    process, terminal = pty.fork()
    if process == 0:
        try:
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # not what pytest has there
            os._exit(train.main(given))
        finally:
            os._exit(99)
    said = b""
    while b"held-out loss" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert status(process) == 128 + signal.SIGHUP
    assert RunFolder(place / "hung-up", writes=False).saved_steps() != []
    assert train.main(given) == 0
    assert outcome(place / "hung-up") == outcome(place / "uninterrupted")


def hung_up_in(step: int, handler: signal.Handlers) -> Callable[[], None]:
    """What sends SIGHUP twice in a step, as the kernel and then a shell do."""

    def setup() -> None:
        signal.signal(signal.SIGHUP, handler)
        train_step = train.train_step

        def stepped(run: train.Run, number: int) -> train.Step:
            if number == step:
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGHUP)
            return train_step(run, number)

        train.train_step = stepped

    return setup


def test_a_terminal_that_closes_twice_is_no_impatience(place):
    assert status(forked(flags(output="twice"), hung_up_in(7, signal.SIG_DFL))) == 129
    assert RunFolder(place / "twice", writes=False).saved_steps() == [7]


def test_under_nohup_a_closed_terminal_changes_nothing(place):
    assert status(forked(flags(output="nohup"), hung_up_in(7, signal.SIG_IGN))) == 0
    assert outcome(place / "nohup") == outcome(place / "uninterrupted")


def test_ctrl_c_while_pytorch_is_imported_says_nothing(tmp_path: Path):
    """Its stand-in gets the signal in the middle of being imported."""
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('went on')\n"
    (tmp_path / "torch.py").write_text(code)
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--lr", "2e-4"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")
