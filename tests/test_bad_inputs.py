"""Every wrong input of `bad_inputs.py`, typed as a user would type it. About 20 seconds.

One line on stderr that names the thing, its value and what to do; exit status 2; nothing created.
Seen to fail when: what the Hub's client cannot be imported with was not looked at before; it was
imported where a model is at hand; a folder in place of a file counted as no file; a run's
config.json was believed without a look at its values; the data were tokenised before the model was
opened; the folder that cannot be made was not named.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import BAD_INPUTS, ENVIRONMENT, INSPECT, MODEL_FOLDERS, TRAIN, Wrong
from export_places import trained  # noqa: F401
from shell import ROOT, Outcome, shell

# Token files of data that were read whole before the mistake was found, or that were begun.
TOKEN_FILES = re.compile(r"home/\.cache(/llama-lora(/[0-9a-f]{64}(/.*)?)?)?")


def contents(place: Path) -> dict[str, str]:
    """What there is: folders, and files with their hashes, but for caches and the run's lock."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if not TOKEN_FILES.fullmatch(name) and path.name != "run.lock":
            is_file = path.is_file()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else "folder"
    return found


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A user's home, and a working directory `here` with `model`, `rows.jsonl` and `run`."""
    here = tmp_path / "place" / "here"
    for name in ("model", "run"):
        shutil.copytree(trained / name, here / name)
    shutil.copy(trained / "rows.jsonl", here)
    (tmp_path / "place" / "home").mkdir()
    return tmp_path / "place"


def settings(wrong: Wrong, place: Path) -> dict[str, str]:
    """The environment of a user without a connection and with an empty cache."""
    return {"HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"} | dict(wrong.env)


def check(wrong: Wrong, done: Outcome) -> None:
    """One line, and status 2."""
    assert done.status == 2 and done.out == "", done
    assert done.err.count("\n") == 1 and len(done.err) <= 301 and "Traceback" not in done.err, done
    program = wrong.command.removeprefix("python -m ").split()[0]
    assert re.match(rf"(python -m )?{re.escape(program)}( ask)?: ", done.err), done.err
    for part in (wrong.thing, wrong.value, wrong.advice):
        assert part and part in done.err, (part, done.err)


def test_there_are_enough_of_them():
    assert len(BAD_INPUTS) >= 60
    assert len({(wrong.command, wrong.thing, wrong.value) for wrong in BAD_INPUTS}) == len(
        BAD_INPUTS
    )


@pytest.mark.parametrize("wrong", BAD_INPUTS, ids=lambda wrong: f"{wrong.thing} {wrong.value}")
def test_a_wrong_input_is_told_in_one_line_and_leaves_nothing(wrong: Wrong, place: Path):
    wrong.spoil(place / "here")
    before = contents(place)
    check(wrong, shell(wrong.command, place / "here", place.parent, settings(wrong, place)))
    assert contents(place) == before
    if wrong in MODEL_FOLDERS:  # told before the data are tokenised, which takes long
        assert not (place / "home" / ".cache").exists()


COLD = [
    Wrong(f"{TRAIN} --lr 0", "--lr", "0.0", "must be above 0"),
    MODEL_FOLDERS[3],
    Wrong(f"{INSPECT} --rows 0", "--rows", "'0'", "give numbers from 1 on"),
    Wrong("export.py none --merged new", "adapter", "none", "give its folder"),
    Wrong("chat.py --adapter none", "adapter", "none", "give its folder"),
    ENVIRONMENT[3],
]


@pytest.mark.parametrize("wrong", COLD, ids=lambda wrong: wrong.command)
def test_a_process_that_python_starts_says_the_same(wrong: Wrong, place: Path):
    wrong.spoil(place / "here")
    before = contents(place)
    name, *rest = shlex.split(wrong.command.removeprefix("python -m "))
    script = ["-m", name] if name == "data.inspect" else [str(ROOT / name)]
    done = subprocess.run(
        [sys.executable, *script, *rest],
        cwd=place / "here",
        env=os.environ | {"PYTHONPATH": str(ROOT)} | settings(wrong, place),
        capture_output=True,
        text=True,
    )
    check(wrong, Outcome(done.returncode, done.stdout, done.stderr))
    assert contents(place) == before


def test_a_tuning_variable_that_makes_no_sense_stops_nothing(place: Path):
    """The libraries that read it say so themselves, and take their own number of threads."""
    command = f"{TRAIN} --max-steps 1 --eval-every 0 --sample-every 0"
    variables = {"HOME": str(place / "home"), "OMP_NUM_THREADS": "many"}
    assert shell(command, place / "here", place.parent, variables).status == 0
    assert (place / "here" / "new" / "adapter").is_dir()


def test_the_demo_needs_no_setting_of_the_hub(place: Path):
    command = "chat.py ask Hi --device cpu --max-new-tokens 1"
    variables = {"HOME": str(place / "home"), "HF_ENDPOINT": "http://[bad"}
    assert shell(command, place / "here", place.parent, variables).status == 0
