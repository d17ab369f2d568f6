"""Builds of token files that are killed, fail, or race with one another. About 20 seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from token_data import content, entries, made, random_rows, small_chat_format, write_jsonl

from data import token_cache
from data.chat_format import ChatFormat
from data.sources import Source
from data.token_cache import FILES, cache_key

ROOT = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_jsonl(tmp_path / "rows.jsonl", random_rows(600))


@pytest.fixture
def chat_format(tmp_path: Path) -> ChatFormat:
    return small_chat_format(tmp_path / "tokenizer")


CHILD = """
import os, signal, sys
from pathlib import Path
import data.dataset, data.token_cache
from data.chat_format import chat_format_of
from data.dataset import tokenize
from data.sources import find_source
from data.tokenizer import Tokenizer
folder = Path(sys.argv[1])
chat_format = chat_format_of(Tokenizer.from_folder(folder / "tokenizer"))
{setup}
source = find_source(str(folder / "rows.jsonl"))
kept, _ = tokenize(source, chat_format, 100, "assistant", folder / "cache")
print(kept.tokens.sum(), kept.targets.sum(), kept.digests.sum())
"""


def start(folder: Path, setup: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("{setup}", setup), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path, source: Source) -> Path:
    """What the child processes work on."""
    small_chat_format(tmp_path / "tokenizer")
    return tmp_path


def test_another_process_finds_what_this_one_made(folder: Path, source: Source):
    """The key does not depend on the order in which a hash map is written out."""
    made(source, small_chat_format(folder / "tokenizer"), folder / "cache")
    fail = "data.dataset.write_tokens = None"
    children = [start(folder, fail) for _ in range(2)]
    printed = {child.communicate()[0] for child in children}
    assert len(printed) == 1
    assert "" not in printed


KILLS = {
    "while rows are read": """
write = data.dataset.targets_of
data.dataset.targets_of = lambda *a: rows.append(1) or len(rows) > 300 and die() or write(*a)
rows = []
""",
    "when the files are written": "data.dataset.dataclasses.asdict = lambda *a: die()",
    **{
        f"at sync {number}": f"""
sync, syncs = data.token_cache.sync, []
data.token_cache.sync = lambda path: die() if len(syncs) == {number} else syncs.append(sync(path))
"""
        for number in range(7)
    },
    "before it is published": "data.token_cache.publish = lambda *a: die()",
}
DIE = "die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"


@pytest.mark.parametrize("setup", KILLS.values(), ids=KILLS.keys())
def test_a_killed_build_leaves_nothing_that_counts(folder: Path, source: Source, setup: str):
    """At sync 6 it is published already, and whole."""
    child = start(folder, DIE + setup)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    chat_format = small_chat_format(folder / "tokenizer")
    key = cache_key(source.files, chat_format, 100, "assistant")
    left = set(entries(folder / "cache"))
    if key in left:
        assert token_cache.damage_of(folder / "cache" / key) is None
        assert "at sync 6" in os.environ["PYTEST_CURRENT_TEST"]
    assert all(name.startswith("building-") for name in left - {key})

    there, _ = made(source, chat_format, folder / "cache")
    expected, _ = made(source, chat_format, folder / "fresh")
    assert content(there) == content(expected)


def test_an_error_while_building_leaves_nothing(
    tmp_path: Path, source: Source, chat_format: ChatFormat
):
    with source.files[0].open("a") as file:
        file.write('{"cut": ')
    with pytest.raises(ValueError, match="line 601: not JSON"):
        made(source, chat_format, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_processes_that_build_the_same_at_once_do_no_harm(folder: Path, source: Source):
    """Four of them, twice, the second time over a damaged folder."""
    chat_format = small_chat_format(folder / "tokenizer")
    expected, _ = made(source, chat_format, folder / "fresh")
    sums = [str(getattr(expected, name).sum()) for name in ("tokens", "targets", "digests")]
    key = cache_key(source.files, chat_format, 100, "assistant")
    for damaged in (False, True):
        if damaged:
            (folder / "cache" / key / FILES[0]).write_bytes(b"")
        children = [start(folder) for _ in range(4)]
        for child in children:
            printed, said = child.communicate()
            assert child.returncode == 0, said
            assert printed.split() == sums
        assert entries(folder / "cache") == [key]
        assert token_cache.damage_of(folder / "cache" / key) is None


def test_folders_of_builds_that_died_are_removed_after_a_day(
    tmp_path: Path, source: Source, chat_format: ChatFormat
):
    cache = tmp_path / "cache"
    for name in ("building-old", "building-new", "other-old"):
        (cache / name).mkdir(parents=True)
        (cache / name / "tokens.bin").write_bytes(b"x")
        if name.endswith("old"):
            os.utime(cache / name, (0, 0))
    made(source, chat_format, cache)
    left = {name for name in entries(cache) if "-" in name}
    assert left == {"building-new", "other-old"}
