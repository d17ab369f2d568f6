"""data/hub.py with the real huggingface_hub client, against the small Hub of hub_server.py.

huggingface_hub reads its environment when it is imported, so that most tests run a child process
with an environment of its own. The whole file takes about 25 seconds.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hub_server import Fault, Hub, hub

from data.hub import fetch_model

ROOT = Path(__file__).parents[1]
WEIGHTS = "model.safetensors"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
UNWANTED = [
    "README.md",
    "consolidated.00.pth",
    "flax_model.msgpack",
    "model.gguf",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "original/model.safetensors",
    "original/tokenizer.model",
    "pytorch_model.bin",
    "tokenizer.model",
]
TOKEN = "hf_thisIsTheSecretThatNobodyMaySee"

# Fetches every name of its command line ("offline:NAME" as if HF_HUB_OFFLINE were set) and prints
# all results as one line. The client's waits between retries are left out.
CHILD = """
import json, os, sys, time, traceback
time.sleep = lambda seconds: None
from huggingface_hub import constants
import data.download
from data.hub import fetch_model
was_offline, results = constants.HF_HUB_OFFLINE, []
{setup}
for name in sys.argv[1:]:
    constants.HF_HUB_OFFLINE = was_offline or name.startswith("offline:")
    try:
        snapshot = fetch_model(name.removeprefix("offline:"))
        results.append([str(snapshot.path), snapshot.name, snapshot.revision])
    except ValueError as error:
        results.append([type(error).__name__, str(error), traceback.format_exc()])
print(json.dumps(results))
"""


@dataclass
class Result:
    """What a child made of one name: a folder, or the message of an error."""

    folder: Path | None
    name: str | None
    revision: str | None
    error: str
    stderr: str

    @property
    def files(self) -> list[str]:
        assert self.folder, self.error
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)


def command(*names: str, setup: str = "") -> list[str]:
    return [sys.executable, "-c", CHILD.replace("{setup}", setup), *names]


def fetch(server: Hub, home: Path, *names: str, setup: str = "", **more: str) -> list[Result]:
    """Fetches names in one child process; no error of another kind, nothing else on stdout."""
    child = subprocess.run(
        command(*names, setup=setup),
        env=server.environment(home, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    results = []
    for first, second, third in json.loads(child.stdout):
        if first == "HubError":
            assert "\n" not in second
            assert "HTTPStatusError" not in third, "the client's own words show in a traceback"
            results.append(Result(None, None, None, second, child.stderr))
        else:
            results.append(Result(Path(first), second, third, "", child.stderr))
    return results


def write(folder: Path, *names: str) -> Path:
    """A folder with files of random bytes, some kilobytes each."""
    generator = random.Random(str(folder))
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(generator.randrange(3000, 9000)))
    return folder


def write_sharded(folder: Path, *shards: str) -> Path:
    """A model whose weights are in the named files, of which those in SHARDS exist."""
    write(folder, "config.json", "tokenizer.json", *(set(shards) & set(SHARDS)))
    index = {"weight_map": {f"layer.{i}": shard for i, shard in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model in one file, with much beside it that nobody needs, and one in two shards."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "lab/whole": write(folder / "whole", WEIGHTS, *SMALL, *UNWANTED),
        "lab/sharded": write_sharded(folder / "sharded", *SHARDS),
    }


@pytest.fixture
def server(models: dict[str, Path]) -> Iterator[Hub]:
    with hub(models) as running:
        yield running


def assert_equal_files(result: Result, source: Path) -> None:
    for name in result.files:
        assert (result.folder / name).read_bytes() == (source / name).read_bytes(), name


# What is downloaded


def test_only_the_needed_files_are_downloaded(server, models, tmp_path):
    """Seen to fail when original/ was chosen too."""
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


# Names that are folders


def test_folders_and_the_demo_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("data.hub.fetch_repo", lambda repo, choose: pytest.fail(str(repo)))
    monkeypatch.setattr("data.hub.DEMO", tmp_path)
    (tmp_path / "unsloth" / "tiny").mkdir(parents=True)
    for name in ("unsloth/tiny", "./unsloth/tiny", "unsloth", str(tmp_path), "~/unsloth", "."):
        snapshot = fetch_model(name)
        assert snapshot.path.samefile(Path(name).expanduser())
        assert (snapshot.name, snapshot.revision) == (name, None)
    assert fetch_model("demo").path == tmp_path


@pytest.mark.parametrize("name", ["./gone", "../gone", "/gone", "~/gone", "runs/a/adapter"])
def test_a_path_that_leads_nowhere_is_not_taken_for_an_id(name, monkeypatch):
    monkeypatch.setattr("data.hub.fetch_repo", lambda repo, choose: pytest.fail(str(repo)))
    with pytest.raises(ValueError, match=f"no folder at .*{re.escape(name.strip('./~'))}: check"):
        fetch_model(name)


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a/", "a--b", "-a", "a..b", "a.git", "é/x", "a\\b", "a/b@", "a/b@../c"]
    + ["a/b@/c", "a/b@x y", "a/b@-x", "a@b@c", "x" * 97, "a/b\n"],
)
def test_a_malformed_id_is_refused_by_name(name, monkeypatch):
    monkeypatch.setattr("data.hub.fetch_repo", lambda repo, choose: pytest.fail(str(repo)))
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id") as caught:
        fetch_model(name)
    assert repr(name) in str(caught.value)


# Damage and interruption


FAULTS = {
    "cut at the start": Fault(cut_after=0, times=6),
    "cut": Fault(cut_after=random.Random(0).randrange(1, 3000), times=6),
    "cut before the last byte": Fault(cut_after=-1, times=6),
    "first byte flipped": Fault(flip_byte=0, times=1),
    "last byte flipped": Fault(flip_byte=-1, times=1),
    "too short": Fault(lengthen=-1, times=1),
    "too long": Fault(lengthen=1, times=1),
    "416": Fault(status=416, times=1),
    "503": Fault(status=503, times=1),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_damaged_download_is_never_loaded_and_the_next_run_completes_it(
    fault, server, models, tmp_path
):
    """Seen to fail when the sha256 was not compared."""
    server.faults[SHARDS[1]] = [replace(fault)]
    names = ["lab/sharded", "offline:lab/sharded", "lab/sharded", "offline:lab/sharded"]
    broken, offline, completed, cached = fetch(server, tmp_path, *names)
    assert SHARDS[1] in broken.error
    assert "run the same command again" in broken.error
    assert f"({SHARDS[1]} is missing)" in offline.error
    assert str(tmp_path / "hub") in offline.error
    assert_equal_files(completed, models["lab/sharded"])
    assert completed.files == cached.files
    assert len(server.asked_for(SHARDS[0])) == 1
    blobs = [path for path in (tmp_path / "hub").rglob("blobs/*") if path.is_file()]
    assert len(blobs) == len(completed.files)


def test_small_files_are_checked_as_well(server, models, tmp_path):
    """Seen to fail when only large files were hashed."""
    server.faults["config.json"] = [Fault(flip_byte=5, times=1)]
    broken, completed = fetch(server, tmp_path, "lab/whole", "lab/whole")
    assert "config.json of lab/whole is not what" in broken.error
    assert_equal_files(completed, models["lab/whole"])


def test_a_cut_connection_goes_on_where_it_broke(server, models, tmp_path):
    small_chunks = "constants.DOWNLOAD_CHUNK_SIZE = 500"
    server.faults[WEIGHTS] = [Fault(cut_after=1100, times=2)]
    (result,) = fetch(server, tmp_path / "0", "lab/whole", setup=small_chunks)
    assert_equal_files(result, models["lab/whole"])
    ranges = [request.headers["Range"] for request in server.asked_for(WEIGHTS)]
    assert ranges == [None, "bytes=1000-", "bytes=2000-"]

    no_range = Fault(status=416, only_ranges=True, times=1)
    server.faults[WEIGHTS] = [Fault(cut_after=1100, times=1), no_range]
    names = ["lab/whole", "lab/whole"]
    broken, completed = fetch(server, tmp_path / "1", *names, setup=small_chunks)
    assert "broke off (it answered 416): run the same command again" in broken.error
    assert_equal_files(completed, models["lab/whole"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_is_never_taken_for_a_complete_one(how, server, models, tmp_path):
    server.faults[WEIGHTS] = [Fault(hang_after=1000, times=1)]
    child = subprocess.Popen(
        command("lab/whole"),
        env=server.environment(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    started = time.monotonic()
    while not list(tmp_path.rglob("*.incomplete")) or not server.asked_for(WEIGHTS):
        assert time.monotonic() < started + 60 and child.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    child.send_signal(how)
    child.communicate(timeout=60)  # Ctrl-C does not wait for the rest of the file
    assert child.returncode != 0
    offline, completed = fetch(server, tmp_path, "offline:lab/whole", "lab/whole")
    assert f"({WEIGHTS} is missing)" in offline.error
    assert_equal_files(completed, models["lab/whole"])
    assert WEIGHTS in completed.files


def test_a_run_that_dies_before_the_check_leaves_nothing_that_is_trusted(server, models, tmp_path):
    """Seen to fail without the file in unfinished/."""
    server.faults[WEIGHTS] = [Fault(flip_byte=100, times=1)]
    dies = """
download = data.download.hf_hub_download
def download_and_die(id, name, **more):
    download(id, name, **more)
    if name == "model.safetensors":
        os._exit(9)
data.download.hf_hub_download = download_and_die
"""
    child = subprocess.run(
        command("lab/whole", setup=dies), env=server.environment(tmp_path), cwd=ROOT
    )
    assert child.returncode == 9
    assert list(tmp_path.rglob(f"snapshots/*/{WEIGHTS}"))
    offline, completed = fetch(server, tmp_path, "offline:lab/whole", "lab/whole")
    assert "its last download was not finished" in offline.error
    assert_equal_files(completed, models["lab/whole"])
    assert not list(tmp_path.rglob("unfinished/*"))


def test_a_broken_update_leaves_the_former_commit_usable_offline(server, tmp_path):
    files = ["config.json", "tokenizer.json", WEIGHTS]
    old = server.publish("lab/moving", write(tmp_path / "old", *files))
    fetch(server, tmp_path / "home", "lab/moving")
    new = server.publish("lab/moving", write(tmp_path / "new", *files))
    server.faults[WEIGHTS] = [Fault(cut_after=9, times=6)]
    names = ["lab/moving", "offline:lab/moving", "lab/moving", "offline:lab/moving"]
    broken, offline, *updated = fetch(server, tmp_path / "home", *names)
    assert broken.error
    assert offline.revision == old
    assert [result.revision for result in updated] == [new, new]


def test_a_cached_file_that_lost_bytes_is_downloaded_again(server, models, tmp_path):
    (result,) = fetch(server, tmp_path, "lab/whole")
    os.truncate(result.folder / WEIGHTS, 1000)
    (healed,) = fetch(server, tmp_path, "lab/whole")
    assert_equal_files(healed, models["lab/whole"])
    report = "from huggingface_hub import scan_cache_dir; print(scan_cache_dir().warnings)"
    child = subprocess.run(
        [sys.executable, "-c", report],
        env=server.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert child.stdout == "[]\n", "the client finds nothing strange in the cache we leave"


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "home").touch()
    (result,) = fetch(server, tmp_path / "home", "lab/whole")
    assert f"the cache {tmp_path / 'home'}" in result.error
    assert "HF_HOME" in result.error


# Without a Hub


def test_offline_opens_no_socket(server, models, tmp_path):
    """Seen to fail when the Hub was asked although HF_HUB_OFFLINE was set."""
    server.publish("lab/whole", models["lab/whole"], revisions=("branch", "refs/pr/1"))
    names = ["lab/whole", "lab/whole@branch", "lab/whole@refs/pr/1", "lab/sharded"]
    there = fetch(server, tmp_path, *names)
    server.requests.clear()
    no_sockets = """
def watch(event, args):
    if event.startswith("socket."):
        os.write(2, f"OPENED {event} {args}".encode())
        os._exit(7)
sys.addaudithook(watch)
"""
    names += [f"lab/whole@{there[0].revision}", "lab/unknown", "lab/whole@unknown"]
    cached = fetch(server, tmp_path, *names, setup=no_sockets, HF_HUB_OFFLINE="1")
    assert [result.folder for result in cached[:4]] == [result.folder for result in there]
    assert cached[4].folder == there[0].folder
    assert cached[0].stderr == ""
    for result, revision in zip(cached[5:], ("main", "unknown"), strict=True):
        assert result.error.startswith("HF_HUB_OFFLINE is set, and lab/")
        assert f"(revision {revision}) is not in the cache {tmp_path / 'hub'}: " in result.error
        assert "--model demo and --model FOLDER need none" in result.error
    assert not server.requests


def test_a_partial_cache_is_refused_offline_with_a_missing_file_and_the_folder(server, tmp_path):
    (result,) = fetch(server, tmp_path, "lab/sharded")
    (result.folder / SHARDS[0]).unlink()
    (cached,) = fetch(server, tmp_path, "lab/sharded", HF_HUB_OFFLINE="1")
    assert f"is not complete in the cache {result.folder} ({SHARDS[0]} is missing)" in cached.error


@pytest.mark.parametrize("trouble", ["refused", "503", "429", "time-out", "no Hub"])
def test_the_cache_helps_out_where_the_hub_does_not_answer(trouble, server, tmp_path):
    (there,) = fetch(server, tmp_path, "lab/whole")
    more = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    if trouble == "refused":
        more["HF_ENDPOINT"] = "http://127.0.0.1:9"
    server.down = int(trouble) if trouble.isdigit() else None
    server.stalls = trouble == "time-out"
    server.nonsense = trouble == "no Hub"
    url = more.get("HF_ENDPOINT", server.url)
    cached, refused = fetch(server, tmp_path, "lab/whole", "lab/sharded", **more)
    assert cached.folder == there.folder
    why = {"refused": "ConnectError", "503": "it answered 503", "429": "it answered 429"}
    why |= {"time-out": "ReadTimeout", "no Hub": "what answers there is no Hub, check HF_ENDPOINT"}
    note = f"{url} cannot be reached ({why[trouble]})"
    assert cached.stderr == f"{note}: using lab/whole as it is in the cache\n"
    assert refused.error.startswith(f"{note}, and lab/sharded (revision main) is not in the cache")
    assert "--model demo and --model FOLDER need none" in refused.error


# Access


def test_each_refusal_has_its_own_message_and_none_shows_a_token(server, models, tmp_path):
    """Seen to fail when a message held the text of the client's exception."""
    llama = "meta-llama/Llama-3.2-1B-Instruct"
    other = "lab/secret"
    for id in (llama, other, "lab/gated"):
        server.publish(id, models["lab/sharded"])
    server.gated |= {llama, "lab/gated"}
    server.private.add(other)
    server.tokens[TOKEN] = set()
    server.echoes_token = True
    names = [llama, "lab/gated", other, "lab/none", "lab/whole@none"]
    loud = {"HF_HUB_VERBOSITY": "debug"}
    without = fetch(server, tmp_path / "0", *names, **loud)
    granted = fetch(server, tmp_path / "1", *names, HF_TOKEN=TOKEN, **loud)
    (bad,) = fetch(server, tmp_path / "2", "lab/whole", HF_TOKEN=f"{TOKEN}2", **loud)
    server.gated_api = True
    without_api = fetch(server, tmp_path / "3", *names[:2])
    with_api = fetch(server, tmp_path / "4", *names[:2], HF_TOKEN=TOKEN)

    url, log_in = server.url, "`hf auth login` or HF_TOKEN"
    assert without[0].error == (
        f"{llama} is gated and you are not logged in: accept its licence at {url}/{llama} and log "
        f"in with {log_in}, or use the ungated copy unsloth/Llama-3.2-1B-Instruct"
    )
    assert granted[0].error == (
        f"{llama} is gated and your token has no access: ask for it at {url}/{llama} and wait until"
        " it is granted (a fine-grained token must also allow gated repos), or use the ungated copy"
        " unsloth/Llama-3.2-1B-Instruct"
    )
    assert "unsloth" not in without[1].error + granted[1].error
    for result, id in zip(without[2:4] + granted[2:4], [other, "lab/none"] * 2, strict=True):
        assert result.error == (
            f"no folder {id} here, and no model at {url}/{id} that you may see: "
            f"check the spelling, or if it is private, log in with {log_in}"
        )
    for results in (without, granted):
        assert results[4].error.startswith("lab/whole has no revision none: choose one at ")
    assert bad.error.startswith(f"{url} does not accept your token: renew it with {log_in}")
    assert [r.error for r in without_api] == [r.error for r in without[:2]]
    assert [r.error for r in with_api] == [r.error for r in granted[:2]]
    for result in [*without, *granted, bad, *without_api, *with_api]:
        assert TOKEN not in result.error + result.stderr
    used = {request.headers["Authorization"] for request in server.requests}
    assert f"Bearer {TOKEN}" in used, "or else nothing was tested"


def test_a_token_that_may_not_read_is_told_from_a_bad_one(server, tmp_path):
    server.tokens[TOKEN] = set()
    server.down = 403
    (result,) = fetch(server, tmp_path, "lab/whole", HF_TOKEN=TOKEN)
    assert f"{server.url} forbids your token to read lab/whole: " in result.error


def test_a_token_goes_to_the_hub_and_to_no_other_host(server, models, tmp_path):
    """Seen to fail when the client took every host for the Hub's (a patch of its own check)."""
    server.private.add("lab/whole")
    server.tokens[TOKEN] = {"lab/whole"}
    (result,) = fetch(server, tmp_path, "lab/whole", HF_TOKEN=TOKEN)
    assert_equal_files(result, models["lab/whole"])
    with_token = {r.host for r in server.requests if TOKEN in str(r.headers)}
    assert with_token == {"hub"}
    assert {request.host for request in server.requests} == {"hub", "cdn"}


def test_a_token_does_not_follow_a_mirror_s_redirect(server, models, tmp_path):
    with hub(models) as elsewhere:
        server.moved_to = elsewhere.url
        (result,) = fetch(server, tmp_path, "lab/whole", HF_TOKEN=TOKEN)
        assert "what answers there is no Hub, check HF_ENDPOINT" in result.error
        assert elsewhere.requests
        assert not [r for r in elsewhere.requests if TOKEN in str(r.headers)]


def test_a_password_in_the_endpoint_is_not_shown(server, tmp_path):
    address = server.url.replace("//", "//student:pass1234@")
    (result,) = fetch(server, tmp_path, "lab/none", HF_ENDPOINT=address)
    assert server.url in result.error
    assert "pass1234" not in result.error + result.stderr
