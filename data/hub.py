"""A model's name turned into a local folder: `demo`, a folder, or an id on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from data.snapshot import HubError, Snapshot, hub_snapshot

DEMO = Path(__file__).parents[1] / "model" / "demo"
SHARD = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
INDEX = "model.safetensors.index.json"
OPTIONAL_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# All of a model but its weights.
SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer.model", *OPTIONAL_FILES)
FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")  # of weights, never of a repo


def fetch_model(name: str) -> Snapshot:
    """The local folder of a model, downloaded from the Hub if need be.

    A local folder that is named like an id wins over the Hub. Of a repo on the Hub only the
    configuration, the tokenizer and the safetensors weights are downloaded, each checked against
    the size and the hash that the Hub announces. Progress goes to stderr.

    Args:
        name: `demo`, a folder, or a Hub id (`owner/name` or `name`), optionally `id@revision`
            with a branch, tag or commit. A folder called demo is `./demo`.

    Raises:
        HubError: (a ValueError) no such folder or repo, no access, no network, or damaged files.
    """
    if name == "demo":
        return local_snapshot(DEMO, name)
    id = name.partition("@")[0]
    is_path = name.startswith(("./", "../", "/", "~")) or id.count("/") > 1
    if is_path or os.path.exists(name) or name.endswith(FILE_SUFFIXES):
        return local_snapshot(Path(os.path.expanduser(name)), name)
    return hub_snapshot(name, "model", model_files)


def pinned(name: str, revision: str | None) -> str:
    """A name on the Hub with the revision that the run began with: the Hub may have moved on."""
    return f"{name}@{revision}" if revision and "@" not in name else name


def local_snapshot(folder: Path, name: str) -> Snapshot:
    """A folder that somebody else put there, as it is.

    Raises:
        HubError: there is no such folder.
    """
    if folder.is_dir():
        return Snapshot(folder, name, None)
    if folder.is_file() or name.endswith(FILE_SUFFIXES):
        raise HubError(
            f"{name} is a file: give the folder of a model, with config.json, tokenizer.json and "
            "model.safetensors in it, or a Hub id as owner/name"
        )
    raise HubError(f"no folder at {folder}: check the path, or give a Hub id as owner/name")


def settings_sha256(folder: Path) -> str:
    """What tells the files of a model beside its weights from any others, by name and content."""
    total = hashlib.sha256()
    for name in SMALL_FILES:
        if (folder / name).is_file():
            total.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()


def model_files(names: Collection[str], read: Callable[[str], Path]) -> list[str]:
    """The files of a model: configuration, tokenizer, chat template, safetensors weights.

    One that a model cannot do without is named even if it is not among `names`.
    """
    sentencepiece_only = "tokenizer.model" in names and "tokenizer.json" not in names
    tokenizer = "tokenizer.model" if sentencepiece_only else "tokenizer.json"
    small = ["config.json", tokenizer, *(file for file in OPTIONAL_FILES if file in names)]
    if "model.safetensors" in names or INDEX not in names:
        return [*small, "model.safetensors"]
    return [*small, INDEX, *shards_of(read(INDEX))]


def shards_of(index: Path) -> list[str]:
    """The safetensors files that an index of sharded weights names.

    Raises:
        HubError: not an index, or one that names something else than safetensors files beside it.
    """
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        strangers = [shard for shard in shards if not SHARD.fullmatch(shard)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HubError(f"{index} is no index of safetensors files: use another model") from None
    if strangers:
        raise HubError(
            f"{index} says that weights are in {strangers[0]!r}, which is not a safetensors file "
            "beside it: use another model"
        )
    return shards
