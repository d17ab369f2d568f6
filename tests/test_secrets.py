"""Nobody's token leaves the header it is sent in: not in what is printed, nor in any file.

Commands that succeed and commands that fail, against the small Hub of hub_server.py, all with a
token of a recognisable value; then every byte that was printed, written or published is searched.
About 10 seconds. Seen to fail when the token was written into a run's config.json, when it stood in
a model card, and when an address was told with the password in it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from export_places import trained  # noqa: F401
from hub_server import Hub
from shell import Outcome, shell
from uploads import TOKEN

TRAIN = "--max-steps 2 --eval-every 0 --sample-every 0 --dtype fp32 --device cpu --output new"
WORKING = [
    f"train.py --model lab/llama --data lab/chats --backup hub:alice/backup {TRAIN}",
    "export.py new --push alice/it",
    "chat.py ask Hello --model lab/llama --adapter new --max-new-tokens 2 --device cpu",
    "python -m data.inspect lab/chats --model lab/llama",
]
FAILING = [
    f"train.py --model lab/none --data lab/chats {TRAIN}-2",
    f"train.py --model lab/llama --data lab/none {TRAIN}-2",
    f"train.py --model lab/llama --data lab/chats --backup hub:club/backup {TRAIN}-2",
    "export.py run --push club/it",
    "export.py run --push bob/it",
    "chat.py ask Hello --model lab/none",
    "python -m data.inspect lab/none",
]


@pytest.fixture
def place(trained: Path, alices_hub: Hub, tmp_path: Path) -> Path:  # noqa: F811
    """A working directory with a run; the Hub has a model and a data set for all."""
    here = tmp_path / "here"
    shutil.copytree(trained / "run", here / "run")
    shutil.copytree(trained / "model", here / "model")
    (tmp_path / "rows").mkdir()
    shutil.copy(trained / "rows.jsonl", tmp_path / "rows" / "train.jsonl")
    alices_hub.publish("lab/llama", here / "model", kind="models")
    alices_hub.publish("lab/chats", tmp_path / "rows", kind="datasets")
    return tmp_path


def command(words: str, place: Path, server: Hub, **more: str) -> Outcome:
    """Runs it as somebody who is logged in by HF_TOKEN."""
    home = str(place / "home")
    settings = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HOME": home}
    done = shell(words, place / "here", place, settings | more)
    assert TOKEN not in done.out + done.err
    return done


def test_a_token_is_in_nothing_that_is_printed_written_or_published(place: Path, alices_hub: Hub):
    for words in WORKING:
        done = command(words, place, alices_hub)
        assert done.status == 0, done
    for words in FAILING:
        done = command(words, place, alices_hub)
        assert done.status == 2 and done.err.count("\n") == 1, done
    sent = [r for r in alices_hub.requests if TOKEN in str(r.headers)]
    assert len(sent) > 20, "or else nothing was tested"
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
    for id in ("alice/it", "alice/backup"):
        for name, content in alices_hub.content(id).items():
            assert TOKEN.encode() not in content, (id, name)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "127.0.0.1:port"])
def test_a_password_in_the_address_is_not_repeated(place: Path, alices_hub: Hub, host: str):
    address = f"http://alice:{TOKEN}@{host}"
    for words in ("chat.py ask Hello --model lab/none", "export.py run --push alice/it"):
        done = command(words, place, alices_hub, HF_ENDPOINT=address, HF_TOKEN="")
        assert done.status == 2 and done.err.count("\n") == 1, done
