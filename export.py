"""Makes of an adapter what others can use: a merged model, a GGUF for llama.cpp, a repo on the Hub.

python export.py runs/demo-demo --merged ./my-model       a folder that transformers loads
python export.py runs/demo-demo --gguf my-model.gguf      a file that llama.cpp runs
python export.py runs/demo-demo --push me/my-adapter      published, with a model card
python export.py runs/demo-demo --push me/my-model --merged
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.command_line import argument, given_flags, option, run_command
from data.snapshot import check_hub_settings

if TYPE_CHECKING:
    from publish.source import Source

NO_FOLDER = ""  # what --merged is without a folder
KINDS = ("f16", "bf16", "q8_0")
DTYPES = ("auto", "fp32", "bf16", "fp16")
# Flags that only say something about what another flag asks for.
NEEDS = {"dtype": "merged", "max_shard_size": "merged", "type": "gguf", "private": "push"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class ExportConfig:
    """What to make of which adapter; each field is a flag of `export.py`.

    Raises:
        ValueError: naming a setting that cannot be, its value and what could be.
    """

    adapter: str = argument("folder of a run, of an adapter, or of a checkpoint")
    model: str | None = option(
        None,
        "base model, if it is not where it was in training: Hub id, folder, or demo",
    )
    merged: str | None = option(
        None,
        "write base and adapter as one model into this new folder; none is needed with --push",
        const=NO_FOLDER,
    )
    dtype: str = option("auto", "of the merged weights: fp32, bf16, fp16; auto is the base's")
    max_shard_size: str = option("5GB", "largest file of merged weights, as 500MB or 5GB")
    gguf: str | None = option(None, "write one file for llama.cpp, Ollama and LM Studio")
    type: str = option("f16", "of the GGUF's weights: f16, bf16, or q8_0, half as large")
    push: str | None = option(None, "publish on the Hub as USER/NAME, with a model card")
    private: bool = option(False, "only you can see what was pushed")

    def __post_init__(self) -> None:
        if self.merged is None and self.gguf is None and self.push is None:
            raise ValueError("nothing to do: add --merged FOLDER, --gguf FILE or --push USER/NAME")
        if self.merged == NO_FOLDER and self.push is None:
            raise ValueError("--merged lacks the folder to write to; add it, or --push USER/NAME")
        for flag, value, choices in (
            ("dtype", self.dtype, DTYPES),
            ("type", self.type, KINDS),
        ):
            if value not in choices:
                raise ValueError(f"--{flag} is {value!r}; choose one of {', '.join(choices)}")
        for field, needed in NEEDS.items():
            is_changed = getattr(self, field) != getattr(ExportConfig, field)
            if is_changed and getattr(self, needed) is None:
                flag = field.replace("_", "-")
                raise ValueError(f"--{flag} has no effect without --{needed}; add it")
        self.max_shard_bytes()

    def max_shard_bytes(self) -> int:
        """How many bytes of merged weights go into a file. Raises ValueError if it is no size."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?B|)", self.max_shard_size.upper())
        size = int(Decimal(found[1]) * UNITS[found[2]]) if found else 0
        if size < 1:
            raise ValueError(
                f"--max-shard-size is {self.max_shard_size!r}; write a number and a unit, as 5GB"
            )
        return size


def main(given: Mapping[str, Any]) -> None:
    """Does what the flags say. All that can be refused is refused before anything is written."""
    config = ExportConfig(**given)
    check_targets(config)
    # What follows imports PyTorch, which nobody should wait for to be told of a mistake above.
    from publish.source import open_source

    source = open_source(config.adapter, config.model)
    if config.push is not None:
        check_hub_settings()
        from publish.push import open_target

        open_target(config.push, config.private, is_merged=config.merged is not None)
    if config.merged:
        merge(source, config, path_of(config.merged))
    if config.gguf is not None:
        convert(source, config, path_of(config.gguf))
    if config.push is not None:
        publish(source, config)


def path_of(name: str) -> Path:
    """The path that a name means, which may begin with ~."""
    return Path(os.path.expanduser(name))


def check_targets(config: ExportConfig) -> None:
    """Makes sure that what will be written can be, and that nothing is in its way.

    Raises:
        ValueError: naming the flag and what is wrong.
    """
    if config.merged:
        folder = path_of(config.merged)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"--merged is {folder}, which holds something already; choose a new folder"
            )
        if folder.exists() and (folder.is_mount() or folder.samefile(Path.cwd())):
            raise ValueError(
                f"--merged is {folder}, which cannot be replaced; choose a new folder in it"
            )
        check_place("merged", folder)
    if config.gguf is not None:
        file = path_of(config.gguf)
        if not file.name or file.exists():
            raise ValueError(f"--gguf is {str(file)!r}, which is there already; choose a new file")
        if config.merged and file.resolve() == path_of(config.merged).resolve():
            raise ValueError(f"--merged and --gguf are both {file}; choose two places")
        check_place("gguf", file)


def check_place(flag: str, path: Path) -> None:
    """Makes sure that `path` can be made; makes nothing yet. Raises ValueError if it cannot."""
    place = next(folder for folder in path.resolve().parents if folder.exists())
    if not place.is_dir():
        raise ValueError(f"--{flag} is {path}, but {place} is a file; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--{flag} is {path}, but {place} cannot be written; choose another place")


def merge(source: Source, config: ExportConfig, folder: Path) -> None:
    """Writes the merged model into a new folder."""
    from publish.model_folder import write_model

    print(write_model(source, folder, config.dtype, config.max_shard_bytes()))


def convert(source: Source, config: ExportConfig, file: Path) -> None:
    """Writes the merged model into one GGUF file, and reads it back."""
    from tqdm import tqdm

    from publish.gguf_check import check_gguf
    from publish.gguf_file import write_gguf
    from publish.merge import MergedWeights
    from publish.new_output import new_file

    weights, model = MergedWeights(source), source.model.path
    count = len(weights.shapes)
    with new_file(file) as temporary:
        with tqdm(total=count, desc="writing", unit="tensor", disable=None) as bar:
            notes = write_gguf(weights, model, config.type, temporary, file.stem, bar.update)
        with tqdm(total=count, desc="checking", unit="tensor", disable=None) as bar:
            check_gguf(weights, model, config.type, temporary, bar.update)
    for note in notes:
        print(note)
    print(f"{file}: {source.model.name} with its adapter, in {config.type}, read back and checked")
    print(f"chat with it: llama-cli -m {file}")


def publish(source: Source, config: ExportConfig) -> None:
    """Puts the adapter, or the merged model, on the Hub."""
    from publish.push import push

    assert config.push is not None
    with tempfile.TemporaryDirectory() as place:
        folder = path_of(config.merged) if config.merged else Path(place) / "model"
        if config.merged == NO_FOLDER:
            merge(source, config, folder)
        merged = None if config.merged is None else folder
        print(f"published: {push(source, config.push, merged)}")


def command(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    about = "Makes of an adapter a merged model, a GGUF file, or a repo on the Hub."
    given = given_flags(ExportConfig, arguments, "export.py", about)
    return run_command("export.py", lambda: main(given))


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
