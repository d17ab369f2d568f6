"""SIGTERM and SIGINT in eight phases of a run, of one process and of two; once, and twice.

As a terminal and torchrun do it, the signal goes to all processes. Before training it ends them and
nothing is there; from then on the checkpoint of the step they were in is whole, and the run goes on
in the same bits. A second signal ends them where they are, which harms nothing. About two minutes.

Seen to fail when: the loop looked at the signal between steps only; a step of which a part was
computed was taken; a left evaluation was logged, or not done again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, hub
from small_runs import (
    adapter_weights,
    begun_together,
    command_line,
    flags,
    litter,
    outcome,
    ranks,
    start,
    status,
    together,
    workplace,
)

import train
from data import token_cache
from lora import durable
from lora.run_folder import RunFolder

PATIENCE = 60.0  # seconds for what takes one
Hook = Callable[[], None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs take place, those that nobody stops among them."""
    folder = tmp_path_factory.mktemp("stopping")
    with workplace(folder):
        for size in (1, 2):
            assert together(size, settings(output=f"whole-{size}")) == [0] * size
        yield folder


def settings(**changes: Any) -> dict[str, Any]:
    """With several micro-batches a step in each of two processes."""
    return flags(**{"micro_batch_tokens": 60, "batch_size": 8, "save_every": 5} | changes)


def at_call(number: int, module: Any, name: str) -> Callable[[Hook], None]:
    """What calls the hook before the given call of a function, counted from 0."""

    def setup(hook: Hook) -> None:
        function, calls = getattr(module, name), []

        def counted(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == number + 1:
                hook()
            return function(*arguments, **named)

        setattr(module, name, counted)

    return setup


def in_the_middle_of_step_6(hook: Hook) -> None:
    """Between two of its micro-batches."""
    gradients, loss, steps, batches = train.gradients, train.summed_loss, [], []

    def of_step(run: train.Run, given: list[train.MicroBatch]) -> Any:
        steps.append(1)
        batches.clear()
        assert len(given) > 1
        return gradients(run, given)

    def of_batch(*arguments: Any) -> Any:
        batches.append(1)
        if (len(steps), len(batches)) == (7, 1):
            hook()
        return loss(*arguments)

    train.gradients, train.summed_loss = of_step, of_batch


PHASES: dict[str, tuple[Callable[[Hook], None], list[int] | None]] = {
    "start": (at_call(0, train, "prepare"), None),
    "tokenising": (at_call(0, token_cache, "seal"), None),
    "first batch": (at_call(0, train, "summed_loss"), [0]),
    "accumulation": (in_the_middle_of_step_6, [5, 6]),
    "evaluation": (at_call(1, train, "evaluate"), [4]),
    "sampling": (at_call(1, train, "generate_batch"), [5, 10]),
    "save": (at_call(0, durable, "manifest"), [5]),
}


def wait_for(path: Path) -> None:
    """Until there is such a file."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.005)


def hold(reached: Path, sent: Path) -> None:
    """Says that a phase is reached, and stays in it until the signal was sent."""
    reached.touch()
    wait_for(sent)


def send(processes: list[int], number: signal.Signals, times: int) -> None:
    """As a terminal does it, to all at the same moment: none hears of another's end before."""
    for _ in range(times):
        for part in (signal.SIGSTOP, number, signal.SIGCONT):
            for process in processes:
                os.kill(process, part)
        time.sleep(0.1)  # two at once are one


@pytest.mark.parametrize(
    "number, times",
    [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)],
)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_whenever_it_is_asked_to_stop_it_saves_and_goes_on(
    place, tmp_path, phase, size, number, times
):
    prepare, saved = PHASES[phase]
    run = place / f"{phase.replace(' ', '-')}-{size}-{number.name}-{times}"
    sent = tmp_path / "sent"

    def setup(rank: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as train.py does when it starts
        sys.stderr = open(os.devnull, "w")
        os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        prepare(lambda: hold(tmp_path / f"reached-{rank}", sent))
        (tmp_path / f"ready-{rank}").touch()

    given = settings(output=str(run), resume=True)
    processes = begun_together(size, given, setup)
    all_reach = range(size if phase in ("start", "first batch") else 1)
    for file in [f"reached-{rank}" for rank in all_reach] + [f"ready-{n}" for n in range(size)]:
        wait_for(tmp_path / file)
    send(processes, number, times)
    sent.touch()
    endings = {status(process) for process in processes}

    if saved is None:
        assert endings == {-number}
        assert not run.exists()
    else:
        lost_the_other = {99} if times == size == 2 else set()  # before it heard the second
        assert {128 + number} <= endings <= {128 + number} | lost_the_other
        found = RunFolder(run, writes=False)
        assert found.newest_checkpoint()[1] == []
        if times == 1:
            assert found.saved_steps() == saved
            assert litter(run) == []
    assert together(size, given) == [0] * size
    assert outcome(run) == outcome(place / f"whole-{size}")
    assert litter(run) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("size", [1, 2])
def test_during_a_download_it_just_ends_and_keeps_what_is_there(place, tmp_path, size, number):
    with hub({"lab/model": place / "model"}) as server:
        server.faults["model.safetensors"] = [Fault(hang_after=1000, times=1)]
        words = command_line(settings(model="lab/model", output=str(tmp_path / "run"), resume=True))
        setup = "train.LONGEST_SAMPLE = 4\nsignal.signal(signal.SIGINT, signal.SIG_DFL)"

        def begun() -> list[Any]:
            more = server.environment(tmp_path / "home")
            places = [more | (rank if size > 1 else {}) for rank in ranks(size)]
            return [start(*words, folder=place, setup=setup, **rank) for rank in places]

        processes = begun()
        deadline = time.monotonic() + PATIENCE
        while not server.asked_for("/model.safetensors"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        send([process.pid for process in processes], number, 1)
        for process in processes:
            out, err = process.communicate(timeout=PATIENCE)
            assert (process.returncode, "Traceback" in err) == (-number, False), err
        assert not (tmp_path / "run").exists()
        for process in begun():
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
        weights = [adapter_weights(path) for path in (tmp_path / "run", place / f"whole-{size}")]
        assert all((weights[0][name] == weight).all() for name, weight in weights[1].items())
