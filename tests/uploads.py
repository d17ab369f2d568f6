"""Uploading in a child process, against the small Hub of hub_server.py.

A child, because huggingface_hub reads its environment when it is imported, and to be killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hub_server import Hub, hub
from hub_uploads import Account

TOKEN = "hf_thisIsTheSecretThatNobodyMaySee"
IT = "alice/it"
CARD = "---\nlicense: mit\n---\n# A card\n"
LARGE = bytes(range(256)) * 300
CONTENT = {
    "README.md": CARD.encode(),
    "model.safetensors": LARGE,
    "step-1/a": b"1",
    "x.bin": b"xyz",
}

# Does what each line of stdin says: the name of a function of data/upload.py and its arguments;
# files as text, or as {"path": ...}. The client's waits between retries are left out, and nobody
# waits long for an answer.
CHILD = """
import json, os, sys, time, traceback
time.sleep = lambda seconds: None
from huggingface_hub import constants
import data.upload
from pathlib import Path
data.upload.LONGEST_SILENCE = 0.5
def content(c):
    return Path(c["path"]) if isinstance(c, dict) else c.encode()
for line in sys.stdin:
    name, environment, arguments = json.loads(line)
    os.environ |= environment
    constants.HF_HUB_OFFLINE = bool(os.environ.get("HF_HUB_OFFLINE"))
    if "files" in arguments:
        arguments["files"] = {n: content(c) for n, c in arguments["files"].items()}
    try:
        result = getattr(data.upload, name)(**arguments)
        result = result.decode() if isinstance(result, bytes) else result
    except ValueError as error:
        words = traceback.format_exc()
        result = {"error": str(error), "type": type(error).__name__, "traceback": words}
    print(json.dumps(result), flush=True)
"""


class Refusal(Exception):
    """What we said instead of doing it, in one line."""


class Uploader:
    """A child that uploads; use it in a with block, at whose end it must have printed nothing.

    Args:
        server: the Hub.
        home: for the child's cache.
        more: of its environment.
    """

    def __init__(self, server: Hub, home: Path, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=server.environment(home, **{"HF_TOKEN": TOKEN} | more),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, *error: object) -> None:
        out, err = self.process.communicate(timeout=60)
        assert out == err == "" or error[0], err

    def __call__(self, function: str, /, **arguments: Any) -> Any:
        """What the function answers. Raises Refusal, or EOFError if the child was killed."""
        assert self.process.stdin and self.process.stdout
        line = json.dumps([function, self.environment, arguments])
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise EOFError
        assert TOKEN not in answer
        result = json.loads(answer)
        if not isinstance(result, dict):
            return result
        assert result["type"] == "HubError" and "\n" not in result["error"], result
        assert "HTTPStatusError" not in result["traceback"]
        raise Refusal(result["error"])

    def open(self, id: str, private: bool = True) -> None:
        self("open_repo", id=id, private=private)

    def commit(self, id: str, files: dict[str, Any], *delete: str) -> str:
        return self("commit_files", id=id, files=files, message="Some", delete=delete)

    def refusal(self, function: str, /, **arguments: Any) -> str:
        with pytest.raises(Refusal) as refused:
            self(function, **arguments)
        return str(refused.value)


def sent(server: Hub) -> list[str]:
    """Which files were sent to the store so far, by hash."""
    return [r.path[5:69] for r in server.requests if r.method == "PUT" and r.status == 200]


def content(server: Hub, id: str) -> dict[str, bytes]:
    """What a repo holds, without what the Hub itself puts there."""
    return {n: c for n, c in server.content(id).items() if n != ".gitattributes"}


@pytest.fixture
def alices_hub() -> Iterator[Hub]:
    """A Hub where alice has an account, and nothing is yet."""
    with hub() as running:
        running.accounts[TOKEN] = Account("alice", orgs=(("lab", "write"), ("club", "read")))
        yield running


@pytest.fixture
def alice(alices_hub: Hub, tmp_path: Path) -> Iterator[Uploader]:
    """Who is logged in there."""
    with Uploader(alices_hub, tmp_path / "home") as child:
        yield child


@pytest.fixture
def some_files(tmp_path: Path) -> dict[str, object]:
    """A card, a large file on disk, one in memory, and one in a folder: CONTENT for the child."""
    (tmp_path / "large").write_bytes(LARGE)
    large = {"path": str(tmp_path / "large")}
    return {"README.md": CARD, "model.safetensors": large, "step-1/a": "1", "x.bin": "xyz"}
