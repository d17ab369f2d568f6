"""A data set's name turned into files: `demo`, a file or folder, or an id on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from data.rows import SUFFIXES
from data.snapshot import HubError, hub_snapshot

DEMO = Path(__file__).parent / "demo"

# The words by which a file's name tells its split, as Hugging Face's `datasets` has them.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
ABOUT_THE_DATA = ("dataset_info.json", "dataset_infos.json")
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")


@dataclass(frozen=True)
class Source:
    """The files of one data set.

    Attributes:
        name: what the user wrote, without a revision.
        files: all of one kind, in the order in which their rows count.
        revision: the commit on the Hub, 40 hex digits; None for local files and the demo.
    """

    name: str
    files: tuple[Path, ...]
    revision: str | None


def find_source(name: str, split: str = "train") -> Source:
    """The files of a data set, downloaded from the Hub if need be.

    What exists locally wins over the Hub. Of a folder or a repo, the files of one split are taken,
    and of those one kind only: parquet before JSON lines before JSON.

    Args:
        name: `demo`, a .parquet, .jsonl or .json file, a folder of those, or a Hub data-set id,
            optionally `id@revision` with a branch, tag or commit.
        split: `train`, `validation` or `test`; where there is no test, validation stands in. A
            single file, and files whose names tell no split, are `train`.

    Raises:
        ValueError: no such file, folder or repo, no access, no network, or no file of the split.
    """
    if name == "demo":
        return folder_source(name, DEMO, split)
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        return folder_source(name, path, split)
    if path.is_file():
        if split != "train":
            raise ValueError(
                f"{name} is a single file, all of it for training: it has no {split}, only train"
            )
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{name}: only {', '.join(SUFFIXES)} files are read; convert it")
        return Source(name, (path,), None)
    id = name.partition("@")[0]
    is_path = name.startswith(("./", "../", "/", "~")) or id.count("/") > 1
    if is_path or path.suffix.lower() in SUFFIXES:
        raise ValueError(f"no file or folder at {path}: check the path")
    return hub_source(name, split)


def find_test_source(name: str) -> Source:
    """What to evaluate on: the test split of a data set, or a file that is named for it, whole."""
    path = Path(os.path.expanduser(name))
    return find_source(name) if path.is_file() else find_source(name, split="test")


def folder_source(name: str, folder: Path, split: str) -> Source:
    """The data files of a local folder, or of folders in it."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [path.as_posix() for path in paths if not any(p.startswith(".") for p in path.parts)]
    files = tuple(folder / file for file in files_of_split(names, split, name))
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} is missing: its name is counted by those beside it")
    return Source(name, files, None)


def hub_source(name: str, split: str) -> Source:
    """The data files of a repo on the Hub."""
    chosen: list[str] = []

    def choose(names: Collection[str], read: Callable[[str], Path]) -> list[str]:
        chosen[:] = files_of_split(names, split, name.partition("@")[0])
        return chosen

    snapshot = hub_snapshot(name, "dataset", choose)
    snapshot.verify()
    return Source(snapshot.name, tuple(snapshot.path / file for file in chosen), snapshot.revision)


def files_of_split(names: Collection[str], split: str, place: str) -> list[str]:
    """The data files of a split among all file names, with all the shards that their names count.

    Raises:
        HubError: (a ValueError) if there are none.
    """
    data = [name for name in names if name.rpartition("/")[2] not in ABOUT_THE_DATA]
    for suffix in SUFFIXES:
        of_kind = sorted(name for name in data if name.lower().endswith(suffix))
        if of_kind:
            break
    else:
        raise HubError(f"{place} has no {', '.join(SUFFIXES)} file: choose another data set")
    by_split = {name: split_told_by(name) for name in of_kind}
    if not any(by_split.values()):
        by_split = dict.fromkeys(of_kind, "train")
    stand_in = "validation" if split == "test" and "test" not in by_split.values() else split
    chosen = [name for name in of_kind if by_split[name] in (split, stand_in)]
    if not chosen:
        shown = ", ".join(of_kind[:3]) + (", ..." if len(of_kind) > 3 else "")
        raise HubError(f"{place} has no file for the split {split}, only {shown}: give one by name")
    return sorted({shard for name in chosen for shard in shards_counted_by(name)})


def split_told_by(name: str) -> str | None:
    """The split that a file's name or folder tells; None if it tells none."""
    told = set(re.split("[^a-z0-9]+", name.lower()))
    return next((split for split, words in SPLIT_WORDS.items() if words & told), None)


def shards_counted_by(name: str) -> list[str]:
    """All files of which `train-00000-of-00002.parquet` is one; a cache may lack some of them."""
    shard = SHARD.fullmatch(name)
    if not shard:
        return [name]
    start, _, count, suffix = shard.groups()
    return [f"{start}-{number:05d}-of-{count}{suffix}" for number in range(int(count))]
