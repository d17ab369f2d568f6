"""What a chat needs of a model besides its weights, and the adapters there are for it.

Needs no PyTorch, so that a wrong name is told before it is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from app.safe_markdown import printable
from data.chat_format import ChatFormat, chat_format_of
from data.hub import fetch_model
from data.tokenizer import Tokenizer
from lora.choose_adapter import base_of, find_adapter
from lora.choose_run import runs_in, without_revision
from lora.config import CONFIG_FILE
from lora.run_folder import RunFolder
from model.config import LlamaConfig
from model.generation_config import SamplingConfig, stop_ids


@dataclass(frozen=True)
class ModelFiles:
    """A model that is at hand, but for its weights.

    Attributes:
        name: what the user calls it.
        folder: where it is, without links and detours: two names of one model have one folder.
        config: its dimensions.
        tokenizer: its vocabulary.
        chat_format: how it wants conversations written.
        sampling: how it wants tokens chosen.
        stop_ids: what ends an answer.
    """

    name: str
    folder: Path
    config: LlamaConfig
    tokenizer: Tokenizer
    chat_format: ChatFormat
    sampling: SamplingConfig
    stop_ids: frozenset[int]

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.config.max_position_embeddings


def open_model(name: str) -> ModelFiles:
    """The model of that name, downloaded if need be; see `fetch_model` for names.

    Raises:
        ValueError: if there is no such model, or one of its files is not what it should be.
    """
    folder = fetch_model(name).path.resolve()
    config = LlamaConfig.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    try:
        chat_format = chat_format_of(tokenizer)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    stops = stop_ids(folder) | chat_format.end_ids
    sampling = SamplingConfig.from_folder(folder)
    return ModelFiles(name, folder, config, tokenizer, chat_format, sampling, stops)


@dataclass(frozen=True)
class Tuned:
    """An adapter to choose: a run's result, one of its checkpoints, or a folder that was named.

    Attributes:
        label: what the user sees.
        folder: what `find_adapter` takes.
        model: the name of its base model; None if nothing says.
        revision: that model's commit on the Hub; None for a local one.
    """

    label: str
    folder: Path
    model: str | None
    revision: str | None = None


def tuned_in(runs: Path) -> list[Tuned]:
    """The adapters of all runs in a folder: the newest run first, its result before checkpoints.

    A run whose files cannot be read, or whose name cannot be shown, has none.
    """
    found: list[Tuned] = []
    for folder in runs_in(runs):
        run = RunFolder(folder, writes=False)
        try:
            config = run.saved_config()
            steps = run.saved_steps()
        except (ValueError, OSError):
            continue
        model, revision = config.get("model"), config.get("model_revision")
        if not isinstance(model, str) or not isinstance(revision, str | None):
            continue
        if (shown := f"{folder.name} {model} {revision}") != printable(shown):
            continue
        if (run.adapter / CONFIG_FILE).is_file():
            found.append(Tuned(folder.name, run.adapter, model, revision))
        for step in reversed(steps):
            label = f"{folder.name}, step {step:,}"
            found.append(Tuned(label, run.checkpoint(step), model, revision))
    return found


def tuned_from(path: str) -> Tuned:
    """The adapter, run or checkpoint in a folder that somebody named.

    Raises:
        ValueError: if there is none.
    """
    if not path:
        raise ValueError("the adapter's name is empty; give a folder")
    folder = find_adapter(Path(os.path.expanduser(path))).resolve()
    return Tuned(path, folder, *base_of(folder))


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same place."""
    return one.resolve() == other.resolve()


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model, in whatever revision."""
    folders = [Path(os.path.expanduser(name)) for name in (one, other)]
    if all(folder.is_dir() for folder in folders):
        return same_folder(*folders)
    return without_revision(one) == without_revision(other)
