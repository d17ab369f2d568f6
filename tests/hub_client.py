"""Fetching models in a child process, against the small Hub of hub_server.py.

A child, because huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import Hub, hub

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

# As the setup of a child: whoever opens a socket ends the process, and says which.
NO_SOCKETS = """
def watch(event, args):
    if event.startswith("socket."):
        os.write(2, f"OPENED {event} {args}".encode())
        os._exit(7)
sys.addaudithook(watch)
"""

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


def run_child(
    server: Hub, home: Path, command: list[str], **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command that has to succeed, with that Hub and a cache of its own."""
    child = subprocess.run(
        command,
        env=server.environment(home, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    return child


def fetch(server: Hub, home: Path, *names: str, setup: str = "", **more: str) -> list[Result]:
    """Fetches names in one child process; no error of another kind, nothing else on stdout."""
    child = run_child(server, home, command(*names, setup=setup), **more)
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


def write_models(folder: Path) -> dict[str, Path]:
    """A model in one file, with much beside it that nobody needs, and one in two shards, by id."""
    return {
        "lab/whole": write(folder / "whole", WEIGHTS, *SMALL, *UNWANTED),
        "lab/sharded": write_sharded(folder / "sharded", *SHARDS),
    }


def assert_equal_files(result: Result, source: Path) -> None:
    for name in result.files:
        assert (result.folder / name).read_bytes() == (source / name).read_bytes(), name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small models, by their ids."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def server(models: dict[str, Path]) -> Iterator[Hub]:
    """A Hub that has them."""
    with hub(models) as running:
        yield running
