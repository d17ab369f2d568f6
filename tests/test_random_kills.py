"""A trainer that is killed at random moments ends in the bits of one that was not.

Each is killed by SIGKILL and started again, as a shell's loop would. In every test run that is done
30 times, in about half a minute; `python -m pytest -m long tests/test_random_kills.py` does it
1,000 times more and kills one run 50 times. A seed decides the moments, to be repeated by
`-k seed-7`, but how far a process gets until then is the machine's affair.

Seen to fail when: a checkpoint was saved only in the end; the dropout's seed was not set at each
step; metrics were not cut back to the checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import flags, forked, litter, metrics, outcome, status

import train
from lora.checkpoint_folder import step_of
from lora.run_folder import RunFolder

KILLS, SAVE_EVERY = 10, 2
LONG = [pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 103)]


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    return outcome(place / "uninterrupted")


def killed_after(seconds: float, given: dict[str, Any]) -> int:
    """How a trainer ended that was to be killed then: 0 if it was faster."""
    process = forked(given)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return status(process)


def saved(run: Path) -> int:
    """After how many steps a run would go on: those of its newest whole checkpoint."""
    newest, damaged = RunFolder(run, writes=False).newest_checkpoint()
    assert damaged == []
    return step_of(newest) if newest else 0


def lost(run: Path) -> int:
    """How many steps that were taken would have to be taken again."""
    records = metrics(run) if (run / "metrics.jsonl").exists() else []
    return max((r["step"] for r in records if "lr" in r), default=0) - saved(run)


@pytest.mark.parametrize("seed", [0, 1, 2, *LONG], ids=lambda seed: f"seed-{seed}")
def test_ten_kills_at_random_moments_change_no_bit(place, expected, seed):
    """A run that is done before the tenth makes room for another; each loses two steps at most."""
    rng, runs, kills = random.Random(seed), 0, 0
    while kills < KILLS:
        run = place / f"random-{seed}-{runs}"
        given = flags(output=run.name, resume=True, save_every=SAVE_EVERY, keep=1)
        ended = -signal.SIGKILL
        while kills < KILLS and ended:
            seconds = rng.uniform(0.05, 0.6)
            print(f"seed {seed}, {run.name}: to be killed after {seconds:.3f} s")
            ended = killed_after(seconds, given)
            assert ended in (0, -signal.SIGKILL)
            assert lost(run) <= SAVE_EVERY
            kills += ended != 0
        assert status(forked(given)) == 0
        assert outcome(run) == expected
        assert litter(run) == []
        runs += 1


@pytest.mark.long
def test_one_run_that_is_killed_fifty_times_ends_in_the_same_bits(place):
    """Each life gets at least one save further, and dies at a random moment after it."""
    rng, run = random.Random(0), place / "fifty"
    given = flags(epochs=None, max_steps=1_000, save_every=SAVE_EVERY, eval_every=100, keep=1)
    assert train.main(given | {"output": "never-killed"}) == 0
    for _ in range(50):
        before, process = saved(run), forked(given | {"output": run.name, "resume": True})
        steps = RunFolder(run, writes=False)
        while max(steps.saved_steps(), default=0) <= before:
            assert os.waitpid(process, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        assert status(process) == -signal.SIGKILL
        assert lost(run) <= SAVE_EVERY
    assert status(forked(given | {"output": run.name, "resume": True})) == 0
    assert outcome(run) == outcome(place / "never-killed")
