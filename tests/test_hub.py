"""What data/hub.py downloads, and what it takes for a folder, an id or neither.

With the real huggingface_hub client against the small Hub of hub_server.py; 10 to 15 seconds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hub_client import (
    SHARDS,
    SMALL,
    UNWANTED,
    WEIGHTS,
    assert_equal_files,
    fetch,
    write,
    write_sharded,
)

from data.hub import fetch_model


def test_only_the_needed_files_are_downloaded(server, models, tmp_path):
    """Seen to fail when original/ was chosen too, and when .bin files were."""
    commit = server.refs["models/lab/whole"]["main"]
    bars = {"TQDM_POSITION": "-1"}  # shows them although stderr is no terminal
    (result,) = fetch(server, tmp_path, "lab/whole", **bars)
    assert result.files == sorted([WEIGHTS, *SMALL])
    assert_equal_files(result, models["lab/whole"])
    assert (result.name, result.revision) == ("lab/whole", commit)
    assert result.folder.name == commit
    assert re.search(rf"{WEIGHTS}: +100%", result.stderr)
    for name in UNWANTED:
        assert not server.asked_for(f"/{name}") + server.asked_for(f"/{name}", "HEAD")

    server.requests.clear()
    (again,) = fetch(server, tmp_path, "lab/whole", **bars)
    assert again.files == result.files
    assert again.stderr == ""
    assert not server.asked_for("/resolve/", "HEAD") + server.asked_for("/resolve/")


def test_whoever_asks_is_told_how_far_a_download_is(server, models, tmp_path):
    """Nothing goes to stderr then. Seen to fail when the client kept its own bars."""
    setup = """
from data.bars import download_bars
told = []
context = download_bars(lambda *how_far: told.append(how_far))
context.__enter__()
import atexit
atexit.register(lambda: print("TOLD", json.dumps(told), file=sys.stderr))
"""
    [result] = fetch(server, tmp_path, "lab/whole", setup=setup)
    others, _, told = result.stderr.partition("TOLD ")
    last = {name: (done, total) for name, done, total in json.loads(told)}
    size = (models["lab/whole"] / WEIGHTS).stat().st_size
    assert last[WEIGHTS] == (size, size) and set(SMALL) < set(last)
    assert others == "", "a bar of the client's own"


def test_ids_revisions_shards_and_old_names_are_found(server, models, tmp_path):
    """Runs with hf_xet installed, against a Hub without xet."""
    first = write(tmp_path / "first", "config.json", "tokenizer.model", WEIGHTS)
    second = write(tmp_path / "second", "config.json", "tokenizer.model", WEIGHTS)
    old = server.publish("plain", first, revisions=("main", "v1.0", "refs/pr/4"))
    new = server.publish("plain", second)
    server.renamed["lab/former"] = "lab/whole"
    names = ["plain", "plain@v1.0", "plain@refs/pr/4", f"plain@{old}", "lab/sharded", "lab/former"]
    results = fetch(server, tmp_path / "home", *names)
    assert [result.revision for result in results[:4]] == [new, old, old, old]
    assert [result.name for result in results[:4]] == ["plain"] * 4
    assert results[0].files == ["config.json", WEIGHTS, "tokenizer.model"]
    assert_equal_files(results[0], second)
    assert_equal_files(results[1], first)
    assert set(SHARDS) < set(results[4].files)
    assert_equal_files(results[4], models["lab/sharded"])
    assert_equal_files(results[5], models["lab/whole"])


def test_a_mirror_that_serves_large_files_itself_is_enough(server, models, tmp_path):
    server.cdn = False
    (result,) = fetch(server, tmp_path, "lab/whole")
    assert_equal_files(result, models["lab/whole"])
    assert {request.host for request in server.requests} == {"hub"}


def test_what_cannot_be_used_is_refused_before_its_weights_are_downloaded(server, tmp_path):
    """Seen to fail when any name was taken for a shard, and when missing files were passed over."""
    strangers = ["../x.safetensors", "original/model.safetensors", "pytorch_model.bin", "/x"]
    folders = (tmp_path / str(number) for number in range(99))
    repos = [
        ("has no config.json", write(next(folders), "tokenizer.json", WEIGHTS)),
        ("has no tokenizer.json", write(next(folders), "config.json", WEIGHTS)),
        ("has no model.safetensors", write(next(folders), *SMALL, "pytorch_model.bin")),
        ("has no third.safetensors", write_sharded(next(folders), *SHARDS, "third.safetensors")),
        ("is no index", write(next(folders), *SMALL, *SHARDS, f"{WEIGHTS}.index.json")),
        ("is no index", write_sharded(next(folders), SHARDS[0], 7)),
        *((repr(name), write_sharded(next(folders), SHARDS[0], name)) for name in strangers),
    ]
    for number, (_, folder) in enumerate(repos):
        server.publish(f"lab/m{number}", folder)
    results = fetch(server, tmp_path / "home", *(f"lab/m{n}" for n in range(len(repos))))
    for (expected, _), result in zip(repos, results, strict=True):
        assert expected in result.error
        assert re.search("(use|choose) another", result.error)
    assert {r.path.rpartition("/")[2] for r in server.asked_for("/resolve/")} == {
        f"{WEIGHTS}.index.json"
    }
    assert {request.host for request in server.requests} == {"hub"}


def test_another_choice_of_files_and_a_data_set_go_the_same_way(server, tmp_path):
    folder = write(tmp_path / "data", "data/train-0.parquet", "data/test-0.parquet", "README.md")
    server.publish("lab/talks", folder, kind="datasets")
    setup = """
from data.repo import Repo
choose = lambda names, read: [name for name in names if "train" in name]
fetch_model = lambda id: data.download.fetch_repo(Repo(id, type="dataset"), choose)
"""
    names = ["lab/talks", "offline:lab/talks", "lab/talk", "offline:lab/talk"]
    here, cached, *missing = fetch(server, tmp_path / "home", *names, setup=setup)
    assert here.files == cached.files == ["data/train-0.parquet"]
    assert_equal_files(here, folder)
    assert f"no dataset at {server.url}/datasets/lab/talk " in missing[0].error
    assert "--data demo" in missing[1].error


def test_the_client_s_own_snapshot_download_works_with_this_hub(server, models, tmp_path):
    """Whether the imitation is honest: the client asks for /tree here, which ours never does."""
    server.publish("lab/talks", write(tmp_path / "talks", "data/train.parquet"), kind="datasets")
    setup = """
from types import SimpleNamespace
from huggingface_hub import snapshot_download
fetch_model = lambda name: SimpleNamespace(
    path=snapshot_download(name.partition("=")[2], repo_type=name.partition("=")[0]),
    name=name, revision="",
)
"""
    names = ["model=lab/whole", "dataset=lab/talks"]
    model, data = fetch(server, tmp_path / "home", *names, setup=setup)
    assert model.files == sorted([WEIGHTS, *SMALL, *UNWANTED])
    assert data.files == ["data/train.parquet"]
    assert_equal_files(model, models["lab/whole"])


@pytest.mark.parametrize("name", ["model", "model.bin"])
def test_a_folder_may_have_any_name_and_a_file_is_told_from_one(name, tmp_path, monkeypatch):
    """Seen to fail when what is called like a file was taken for one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert fetch_model(name).path == Path(name)
    (tmp_path / "file").touch()
    for file in ("file", "nowhere.gguf", "/nowhere/model.safetensors"):
        with pytest.raises(ValueError, match=f"^{file} is a file: give the folder of a model"):
            fetch_model(file)


def test_folders_and_the_demo_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("data.download.fetch_repo", lambda repo, choose: pytest.fail(str(repo)))
    monkeypatch.setattr("data.hub.DEMO", tmp_path)
    (tmp_path / "unsloth" / "tiny").mkdir(parents=True)
    for name in ("unsloth/tiny", "./unsloth/tiny", "unsloth", str(tmp_path), "~/unsloth", "."):
        snapshot = fetch_model(name)
        assert snapshot.path.samefile(Path(name).expanduser())
        assert (snapshot.name, snapshot.revision) == (name, None)
    assert fetch_model("demo").path == tmp_path


@pytest.mark.parametrize("name", ["./gone", "../gone", "/gone", "~/gone", "runs/a/adapter"])
def test_a_path_that_leads_nowhere_is_not_taken_for_an_id(name, monkeypatch):
    monkeypatch.setattr("data.download.fetch_repo", lambda repo, choose: pytest.fail(str(repo)))
    with pytest.raises(ValueError, match=f"no folder at .*{re.escape(name.strip('./~'))}: check"):
        fetch_model(name)


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a/", "a--b", "-a", "a..b", "a.git", "é/x", "a\\b", "a/b@", "a/b@../c"]
    + ["a/b@/c", "a/b@x y", "a/b@-x", "a@b@c", "x" * 97, "a/b\n"],
)
def test_a_malformed_id_is_refused_by_name(name, monkeypatch):
    monkeypatch.setattr("data.download.fetch_repo", lambda repo, choose: pytest.fail(str(repo)))
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id") as caught:
        fetch_model(name)
    assert repr(name) in str(caught.value)
