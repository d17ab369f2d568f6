"""The whole of train.py, and a download: at every file operation the system fails once, or it ends.

As test_file_operations.py does for each part. The command ends with one line and status 2, or goes
on where that operation was not needed; a checkpoint that was there is whole; and the same command
again ends in the bits of a run that nothing happened to. About two minutes; with `-m long` every
error is tried at every operation, which takes three more.

Seen to fail when a MemoryError showed a traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, hub
from huggingface_hub import HfApi
from small_runs import flags, litter, outcome, status, workplace, write_small_model
from test_file_operations import fail, hooked, kill, struck, tear

import train
from data import download
from data.hub import fetch_model
from data.repo import constants
from lora.run_folder import RunFolder

ERRORS: list[BaseException] = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    MemoryError(),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
]
UNTOUCHED, NO_SYNC = 50, 51  # exit statuses: there was no such operation; nothing to be torn there


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("operations")
    with workplace(folder):
        assert train.main(settings(folder / "whole")) == 0
        yield folder


def settings(run: Path) -> dict:
    given = {"max_steps": 4, "epochs": None, "save_every": 2, "keep": 1, "eval_every": 0}
    return flags(**given, sample_every=0, output=str(run), resume=True)


def struck_command(root: Path, number: int, strike: Callable[[int | None], None]) -> int:
    """How train.py ended when the given operation below `root` was struck; stderr is kept."""
    process = os.fork()
    if process == 0:
        ended = 99
        try:
            torch.set_num_threads(1)
            os.environ["XDG_CACHE_HOME"] = str(root / "cache")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr = open(root.with_suffix(".err"), "w", buffering=1)  # noqa: SIM115
            reached = []
            hooked(root, number, lambda d: (reached.append(1), strike(d)))
            train.given_flags = lambda *more: settings(root / "run")
            ended = train.command([])
            ended = ended if reached else UNTOUCHED
        finally:
            os._exit(ended)
    return status(process)


def tear_what_is_synced(descriptor: int | None) -> None:
    if descriptor is None:
        os._exit(NO_SYNC)
    tear(descriptor)


KINDS: dict[str, list[Callable[[int | None], None]]] = {
    "kills": [kill],
    "tears": [tear_what_is_synced],
    "errors": [fail(error) for error in ERRORS],  # one after the other, at one operation each
}
EVERY_ERROR = {f"always {type(error).__name__} {error}": [fail(error)] for error in ERRORS}


@pytest.mark.parametrize(
    "strikes",
    [pytest.param(strikes, id=kind) for kind, strikes in KINDS.items()]
    + [pytest.param(s, id=kind, marks=pytest.mark.long) for kind, s in EVERY_ERROR.items()],
)
def test_whatever_operation_fails_or_is_the_last_the_command_says_so_and_can_be_repeated(
    place, tmp_path, strikes
):
    dies = strikes[0] in (kill, tear_what_is_synced)
    allowed = {-signal.SIGKILL, NO_SYNC, UNTOUCHED} if dies else {0, 2, UNTOUCHED}
    expected, number, endings = outcome(place / "whole"), 0, []
    while UNTOUCHED not in endings:
        root = tmp_path / f"{number:04d}"
        root.mkdir()
        endings.append(struck_command(root, number, strikes[number % len(strikes)]))
        number += 1
        said = root.with_suffix(".err").read_text()
        assert endings[-1] in allowed, (number, said)
        if endings[-1] == NO_SYNC:
            continue
        if endings[-1] == 2:
            line = said.strip().splitlines()[-1]
            assert "Traceback" not in said and len(line) <= 400, (number, said)
            assert line.startswith("train.py: "), (number, said)
        run = RunFolder(root / "run", writes=False)
        assert not run.saved_steps() or run.newest_checkpoint()[0], number
        assert struck_command(root, 10**9, kill) == UNTOUCHED, (number, said)
        assert outcome(root / "run") == expected, number
        assert litter(root) == [], number
    assert number > 60
    assert endings.count(-signal.SIGKILL) > 15 if dies else endings.count(2) > 40


# --- a download -----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A Hub with a model; for the client in this process, whatever it was imported with."""
    with hub({"lab/model": write_small_model(tmp_path / "model")}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        address = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(download, "repo_info", HfApi(endpoint=running.url).repo_info)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def fetch(root: Path) -> None:
    constants.HF_HUB_CACHE = download.constants.HF_HUB_CACHE = str(root / "hub")
    snapshot = fetch_model("lab/model")
    snapshot.verify()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (snapshot.path / name).read_bytes() == (root.parent / "model" / name).read_bytes()


@pytest.mark.parametrize("kind", ["killed", "torn", "an error"])
def test_whatever_operation_of_a_download_is_the_last_the_next_one_has_every_byte(
    server, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE)
    number, ended = 0, 0
    while ended is not None:
        root = tmp_path / f"{number:04d}"
        root.mkdir()
        strikes = {"killed": kill, "torn": tear, "an error": fail(ERRORS[number % len(ERRORS)])}
        ended = struck(root, number, strikes[kind], fetch)
        assert ended != 99, number
        assert struck(root, 10**9, kill, fetch) is None, number
        number += 1
    assert number > 20
