"""Which files a data set's name stands for, here and on the Hub.

The Hub is the small one of hub_server.py, asked by the real huggingface_hub client. 10 seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import NO_SOCKETS, run_child
from hub_server import Fault, Hub, hub

from data.rows import count_rows
from data.sources import SPLIT_WORDS, find_source

ROOT = Path(__file__).parents[1]
CHILD = """
import json, os, sys, time
time.sleep = lambda seconds: None
from huggingface_hub import constants
from data.sources import find_source
{setup}
results = []
for name, split in json.loads(sys.argv[1]):
    try:
        source = find_source(name, split)
        results.append([source.name, [str(file) for file in source.files], source.revision])
    except ValueError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def fetch(
    server: Hub, home: Path, *wanted: tuple[str, str] | str, setup: str = "", **more: str
) -> list[Any]:
    """What a child process finds, with a cache of its own: a name, files, commit; or an error."""
    pairs = [(name, "train") if isinstance(name, str) else name for name in wanted]
    command = [sys.executable, "-c", CHILD.replace("{setup}", setup), json.dumps(pairs)]
    results = json.loads(run_child(server, home, command, **more).stdout)
    assert all("\n" not in result for result in results if isinstance(result, str))
    return results


def write(folder: Path, *names: str) -> Path:
    """A folder with files that hold their own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(json.dumps([{"text": name}]))
    return folder


def found(folder: Path, split: str = "train") -> list[str]:
    """The names of the files found in a folder."""
    source = find_source(str(folder), split)
    assert (source.name, source.revision) == (str(folder), None)
    return [path.relative_to(folder).as_posix() for path in source.files]


def refusal(name: Any, split: str = "train") -> str:
    with pytest.raises(ValueError) as error:
        find_source(str(name), split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_demo_has_two_splits():
    train, test = find_source("demo"), find_source("demo", "test")
    assert (train.name, train.revision) == ("demo", None)
    assert not set(train.files) & set(test.files)
    assert all(count_rows(file) for file in train.files + test.files)


@pytest.mark.parametrize("name", ["a.parquet", "b.jsonl", "c.json", "test.json", "d.PARQUET"])
def test_a_file_is_itself(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, name)
    assert find_source(str(tmp_path / name)).files == (tmp_path / name,)
    monkeypatch.chdir(tmp_path)
    assert find_source(name).files == (Path(name),)
    assert "it has no test" in refusal(name, "test")


def test_what_is_here_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "owner/name", "x.jsonl")
    monkeypatch.chdir(tmp_path)
    assert find_source("owner/name").files == (Path("owner/name/x.jsonl"),)


@pytest.mark.parametrize(
    "names, train, validation, test",
    [
        (["b.jsonl", "a.jsonl"], ["a.jsonl", "b.jsonl"], None, None),
        (["trained.jsonl", "latest.jsonl"], ["latest.jsonl", "trained.jsonl"], None, None),
        (["train.json", "test.json"], ["train.json"], None, ["test.json"]),
        (["train.json", "val.json"], ["train.json"], ["val.json"], ["val.json"]),
        (
            ["my_training_set.json", "dev.json", "eval-1.json"],
            ["my_training_set.json"],
            ["dev.json"],
            ["eval-1.json"],
        ),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            None,
            None,
        ),
        (["train/0.jsonl", "test/0.jsonl"], ["train/0.jsonl"], None, ["test/0.jsonl"]),
        (
            ["en/Train.jsonl", "fr/TRAIN.jsonl", "notes.jsonl"],
            ["en/Train.jsonl", "fr/TRAIN.jsonl"],
            None,
            None,
        ),
        (["x.parquet", "x.jsonl", "x.json"], ["x.parquet"], None, None),
        (["x.jsonl", "x.json", "x.csv", "README.md"], ["x.jsonl"], None, None),
        (["x.json", "dataset_infos.json", "dataset_info.json"], ["x.json"], None, None),
        (
            ["train.parquet", ".cache/train.parquet", ".hidden.parquet"],
            ["train.parquet"],
            None,
            None,
        ),
        (["test.jsonl"], None, None, ["test.jsonl"]),
    ],
)
def test_the_files_of_a_split_are_told_by_words(
    tmp_path: Path, names: list[str], train: Any, validation: Any, test: Any
):
    """The folder's own name does not count.

    Seen to fail when any part of a name counted as a word, when kinds were mixed, when files
    below hidden folders were read, and when the whole path was looked at.
    """
    folder = write(tmp_path / "train test", *names)
    for split, expected in (("train", train), ("validation", validation), ("test", test)):
        if expected is None:
            assert f"has no file for the split {split}, only" in refusal(folder, split)
        else:
            assert found(folder, split) == expected


def test_the_words_of_the_splits_are_those_of_the_datasets_library():
    """As listed in its documentation of file names."""
    words = sorted(word for split in SPLIT_WORDS.values() for word in split)
    assert words == sorted(
        "train training validation valid dev val test testing eval evaluation".split()
    )


def test_a_missing_shard_is_named(tmp_path: Path):
    """Seen to fail when only the files that are there were counted."""
    folder = write(tmp_path, *(f"train-0000{n}-of-00003.parquet" for n in (0, 2)))
    assert f"{folder / 'train-00001-of-00003.parquet'} is missing" in refusal(folder)


def test_what_cannot_be_found_or_read_is_refused(tmp_path: Path):
    """Seen to fail when an empty name meant the folder that one is in."""
    assert "no file or folder at" in refusal(tmp_path / "nothing")
    assert "no file or folder at rows.jsonl" in refusal("rows.jsonl")
    assert "no file or folder at" in refusal("./owner")
    write(tmp_path, "rows.csv")
    assert ".parquet, .jsonl, .json files are read" in refusal(tmp_path / "rows.csv")
    assert "has no .parquet, .jsonl, .json file" in refusal(tmp_path)
    for name in ("", "two words", "a b/c", "owner/name@", "owner/name@-x", "@main", "a/b@c d"):
        assert "is neither a file or folder here nor a Hub id" in refusal(name)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    repo = write(
        tmp_path / "repo",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
        "train.jsonl",
        "README.md",
        "dataset_infos.json",
    )
    with hub(datasets={"lab/chats": repo}) as running:
        yield running


def test_only_the_files_of_the_split_are_downloaded(server: Hub, tmp_path: Path):
    """And once."""
    commit = server.refs["datasets/lab/chats"]["main"]
    ((name, files, revision),) = fetch(server, tmp_path / "home", "lab/chats")
    assert (name, revision) == ("lab/chats", commit)
    assert [Path(file).name for file in files] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    for file in files:
        original = tmp_path / "repo" / "data" / Path(file).name
        assert Path(file).read_bytes() == original.read_bytes()
    for unwanted in ("test-", "train.jsonl", "README", "dataset_infos"):
        assert not server.asked_for(unwanted)

    server.requests.clear()
    assert fetch(server, tmp_path / "home", "lab/chats") == [[name, files, revision]]
    assert not server.asked_for("/resolve/")
    ((_, (test,), _),) = fetch(server, tmp_path / "home", ("lab/chats", "test"))
    assert Path(test).name == "test-00000-of-00001.parquet"
    # The test split is in the cache now, and the train split still is what it was.
    assert fetch(server, tmp_path / "home", "lab/chats") == [[name, files, revision]]


def test_a_revision_is_the_one_that_was_asked_for(server: Hub, tmp_path: Path):
    first = write(tmp_path / "first", "a.jsonl")
    second = write(tmp_path / "second", "b.jsonl")
    old = server.publish("lab/news", first, kind="datasets", revisions=("main", "v1"))
    new = server.publish("lab/news", second, kind="datasets")
    names = ["lab/news", "lab/news@v1", f"lab/news@{old}", "lab/news@v2"]
    *results, unknown = fetch(server, tmp_path / "home", *names)
    assert [revision for _, _, revision in results] == [new, old, old]
    assert [Path(file).name for _, (file,), _ in results] == ["b.jsonl", "a.jsonl", "a.jsonl"]
    assert [name for name, _, _ in results] == ["lab/news"] * 3
    assert "lab/news has no revision v2" in unknown


def test_offline_the_cache_is_used_and_no_socket_opened(server: Hub, tmp_path: Path):
    home = tmp_path / "home"
    there = fetch(server, home, "lab/chats")
    wanted = ["lab/chats", "lab/other"]
    cached, other = fetch(server, home, *wanted, setup=NO_SOCKETS, HF_HUB_OFFLINE="1")
    assert [cached] == there
    assert other.startswith("HF_HUB_OFFLINE is set, and lab/other")
    assert "--data demo and --data FOLDER need none" in other

    Path(cached[1][0]).unlink()
    (lacking,) = fetch(server, home, "lab/chats", HF_HUB_OFFLINE="1")
    assert "data/train-00000-of-00002.parquet is missing" in lacking


def test_a_hub_without_the_data_or_with_damaged_ones_is_one_clear_line(server: Hub, tmp_path: Path):
    server.publish("lab/text", write(tmp_path / "text", "README.md", "a.csv"), kind="datasets")
    server.publish("lab/tests", write(tmp_path / "tests", "test.jsonl"), kind="datasets")
    server.publish("lab/model", write(tmp_path / "model", "config.json"))
    shard = "train-00000-of-00002.parquet"
    server.publish("lab/part", write(tmp_path / "part", shard), kind="datasets")
    server.gated.add("lab/tests")
    names = ["lab/text", "lab/tests", "lab/model", "lab/part"]
    text, tests, model, part = fetch(server, tmp_path / "home", *names)
    assert "lab/text has no .parquet, .jsonl, .json file: choose another data set" in text
    assert "lab/tests has no file for the split train, only test.jsonl" in tests
    assert "no dataset at" in model
    assert "has no train-00001-of-00002.parquet" in part
    (gated,) = fetch(server, tmp_path / "home", ("lab/tests", "test"))
    assert "lab/tests is gated" in gated

    server.faults["data/train-00001-of-00002.parquet"] = [Fault(flip_byte=50)]
    (damaged,) = fetch(server, tmp_path / "home", "lab/chats")
    assert "is not what" in damaged
    server.faults.clear()
    ((_, files, _),) = fetch(server, tmp_path / "home", "lab/chats")
    assert len(files) == 2
