"""The process is killed between any two writes, or the power goes: what is left, and what follows.

Of each of the program's ways to save, and of the whole of train.py, every state that a folder is
ever in is taken down (tests/disk_model.py). Each is tried as it was, which is what a kill leaves;
and as it may be when the power goes, where only what was waited for is certain. The next start must
succeed from all of them (of train.py, which takes longer, from some), and once a call has returned,
what it saved must be there in all of them. Tokens may be gone: they are made again. About 70
seconds.

Seen to fail when a folder was removed file by file before the disk knew that it had lost its name,
when what is removed did not wait for that either, and when nobody waited for the names of the
folders above an export.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_model import Moment, watched
from small_runs import flags, litter, outcome, workplace
from test_file_operations import CASES, cache

import train
from lora.checkpoint_folder import step_of
from lora.run_folder import RunFolder

LEFT: dict[str, Callable[[Moment, Path], None]] = {
    "killed": Moment.now,
    "what was synced": Moment.synced_only,
    "names before contents": Moment.names_first,
    **{
        f"in no order, {seed}": lambda moment, folder, seed=seed: moment.at_random(folder, seed)
        for seed in range(8)
    },
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def moments_of(case, root: Path) -> list[Moment]:
    """Every state of the folder in which one way to save does its work."""
    begin, act, check = case
    root.mkdir()
    begin(root)
    with watched(root) as moments:
        act(root)
    check(root, True)
    return moments


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT.keys())
def test_whatever_is_left_nothing_is_lost_and_the_next_start_succeeds(tmp_path, case, left):
    _, act, check = case
    moments = moments_of(case, tmp_path / "whole")
    assert len(moments) > 12
    for number, moment in enumerate(moments):
        root = tmp_path / f"{number:04d}"
        left(moment, root)
        check(root, moment is moments[-1] and act is not cache)
        act(root)
        check(root, True)
        assert litter(root) == [], number
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("power")
    with workplace(folder) as patch:
        yield folder, patch


def train_in(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    given = {"max_steps": 4, "epochs": None, "save_every": 1, "keep": 2, "eval_every": 2}
    assert train.main(flags(**given, sample_every=0, output=str(root / "run"), resume=True)) == 0


def test_of_a_whole_run_no_saved_step_is_lost(place, monkeypatch):
    """Every thirtieth of the states is gone on from, to the bits of the run that nobody stopped."""
    folder, patch = place
    saved: list[tuple[int, int]] = []  # how many states there were when a step was safe
    publish = RunFolder.publish_checkpoint

    def noted(run: RunFolder, step: int, *more) -> list[str]:
        told = publish(run, step, *more)
        saved.append((len(moments), step))
        return told

    monkeypatch.setattr(RunFolder, "publish_checkpoint", noted)
    whole = folder / "whole"
    whole.mkdir()
    with watched(whole) as moments:
        train_in(whole, patch)
    monkeypatch.undo()
    assert len(moments) > 150
    assert [step for _, step in saved] == [1, 2, 3, 4]
    for number, moment in enumerate(moments):
        safe = max((step for count, step in saved if count <= number + 1), default=0)
        for left in LEFT.values():
            root = folder / "left"
            left(moment, root)
            newest, _ = RunFolder(root / "run", writes=False).newest_checkpoint()
            assert (step_of(newest) if newest else 0) >= safe, number
            if left is list(LEFT.values())[number % len(LEFT)] and number % 30 == 0:
                train_in(root, patch)
                assert outcome(root / "run") == outcome(whole / "run"), number
            shutil.rmtree(root)
