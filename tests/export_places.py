"""A working directory with a finished run in it, and what export.py answers to a mistake there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import flags, workplace

import export
import train

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of four steps with checkpoints after the second and the last."""
    folder = tmp_path_factory.mktemp("place")
    with workplace(folder):
        assert train.main(flags(max_steps=4, save_every=2, eval_every=0, sample_every=0)) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A working directory with a copy of that run and its base, to be spoilt."""
    for name in ("model", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def entries(folder: Path) -> dict[str, tuple[int, int]]:
    """All files and folders with their sizes and times."""
    found = ((p.relative_to(folder).as_posix(), p.lstat()) for p in folder.rglob("*"))
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is answered to a mistake, checked to be one line that leaves nothing behind."""
    before = entries(Path.cwd())
    capsys.readouterr()
    try:
        status = export.command(arguments)
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "", (status, out, err)
    assert err.startswith("export.py: ") and err.count("\n") == 1 and len(err) <= 300, err
    assert "Traceback" not in err
    assert entries(Path.cwd()) == before
    return err.removeprefix("export.py: ").rstrip("\n")
