"""Every file that somebody else may have written, damaged at random: read, or refused in one line.

Never anything but a ValueError or an OSError whose one line names the file, and never more memory
than twice the file's size and what libraries take for themselves. The same damages each time;
`python -m pytest -m long` tries fifty times as many. About 25 seconds.

Seen to fail when: a checkpoint's state or tensors were believed if the manifest was; a run's
config.json was believed; an error was passed on without the file's name; a number of the wrong
kind was let through in adapter_config.json; a reader took 256 MB beside what it read, or as many
bytes as a file said.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from export_places import trained  # noqa: F401
from fuzzing import (
    bytes_edits,
    changed,
    damaged,
    fuzz,
    in_little_memory,
    json_edits,
    refused_in_one_line,
)
from model_folders import sharded, tensors_of
from small_runs import short_rows

from data.chat_format import chat_format_of
from data.conversations import Flaw, conversation_of
from data.rows import read_rows
from data.sources import find_source
from data.tokenizer import Tokenizer
from lora.adapter import load_adapter
from lora.checkpoint import load_checkpoint, trainable
from lora.choose_run import choose_config
from lora.config import CONFIG_FILE, read_config
from lora.durable import MANIFEST, manifest, verify_folder
from lora.inject import add_lora
from lora.run_folder import RunFolder
from model.config import LlamaConfig
from model.generation_config import SamplingConfig, stop_ids
from model.weights import load_model
from publish.push import sources_of
from publish.source import open_source

COUNTS = [200, pytest.param(10_000, marks=pytest.mark.long)]
STEP = Path("run/checkpoints/step-000004")


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A working directory with a model, a sharded one, data of all kinds and a finished run."""
    for name in ("model", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    (tmp_path / "sharded").mkdir()
    sharded(tmp_path / "sharded", tensors_of())
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [6, 7]}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(generation))
    settings = {"bos_token": "<s>", "add_bos_token": True, "a": [{"b": 1}]}
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps(settings))
    rows = short_rows(20)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def conversations(name: str) -> None:
    """Reads all rows of a data set as training does, and counts the flaws."""
    for file in find_source(name).files:
        for batch in read_rows(file):
            for row in batch:
                try:
                    conversation_of(row)
                except Flaw:
                    pass


@functools.cache
def adapted_model() -> tuple[torch.nn.Module, torch.optim.AdamW]:
    """The model of the run, with the layers that its adapter is for."""
    model = load_model(Path("model"), torch.float32)
    config, _ = read_config(Path("run/adapter") / CONFIG_FILE)
    add_lora(model, config)
    return model, torch.optim.AdamW([p for _, p in trainable(model)])


def checkpoint_with_a_manifest() -> None:
    """A checkpoint whose manifest fits the damage, so that the files themselves are looked at."""
    files = {p.name: p.read_bytes() for p in STEP.iterdir() if p.name != MANIFEST}
    (STEP / MANIFEST).write_bytes(manifest(files))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    load_checkpoint(STEP, *adapted_model(), scaler)


def saved_run() -> None:
    """A run's settings as resuming and publishing read them."""
    folder = RunFolder(Path("run"), writes=False)
    choose_config({"resume": True}, folder.saved_config(), folder.path)


def run_records() -> None:
    """What a run logged, and its data: a model card leaves out what it cannot read."""
    RunFolder(Path("run"), writes=False).records()
    sources_of(open_source("run", "model"))


# The file, what reads it, and a name that a refusal must hold.
JSON_FILES: dict[str, tuple[Callable[[], object], str]] = {
    "model/config.json": (lambda: LlamaConfig.from_folder(Path("model")), "config.json"),
    "model/generation_config.json": (
        lambda: (SamplingConfig.from_folder(Path("model")), stop_ids(Path("model"))),
        "generation_config.json",
    ),
    "model/tokenizer.json": (
        lambda: chat_format_of(Tokenizer.from_folder(Path("model"))), "",
    ),
    "model/tokenizer_config.json": (
        lambda: chat_format_of(Tokenizer.from_folder(Path("model"))), "",
    ),
    "sharded/model.safetensors.index.json": (lambda: load_model(Path("sharded")), "sharded"),
    "run/adapter/adapter_config.json": (
        lambda: read_config(Path("run/adapter") / CONFIG_FILE), "adapter_config.json",
    ),
    "run/config.json": (saved_run, ""),
    "run/data.json": (run_records, "no refusal"),
    f"{STEP}/manifest.json": (lambda: verify_folder(STEP), "step-000004"),
    f"{STEP}/state.json": (checkpoint_with_a_manifest, "step-000004"),
    "rows.json": (lambda: conversations("rows.json"), "rows.json"),
}  # fmt: skip
OTHER_FILES: dict[str, tuple[Callable[[], object], str]] = {
    "model/model.safetensors": (lambda: load_model(Path("model")), "model"),
    "run/adapter/adapter_model.safetensors": (
        lambda: load_adapter(load_model(Path("model")), Path("run/adapter")), "adapter",
    ),
    f"{STEP}/optimizer.safetensors": (checkpoint_with_a_manifest, "step-000004"),
    "run/metrics.jsonl": (run_records, "no refusal"),
    "rows.jsonl": (lambda: conversations("rows.jsonl"), "rows.jsonl"),
    "rows.parquet": (lambda: conversations("rows.parquet"), "rows.parquet"),
}  # fmt: skip


def check_damages(place: Path, name: str, edits, damage, examples: int) -> None:
    """Damages a file again and again and reads it, in a process with little memory."""
    file, (read, named) = place / name, (JSON_FILES | OTHER_FILES)[name]
    whole = file.read_bytes()
    read()

    def check(drawn) -> None:
        file.write_bytes(damage(whole, drawn))
        refused_in_one_line(read, named)

    in_little_memory(2 * len(whole), fuzz(edits, examples, check), place / "failure.txt")


@pytest.mark.parametrize("examples", COUNTS)
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_with_other_values_in_it(place: Path, name: str, examples: int):
    check_damages(place, name, json_edits, changed, examples)


@pytest.mark.parametrize("examples", COUNTS)
@pytest.mark.parametrize("name", JSON_FILES | OTHER_FILES)
def test_a_file_with_other_bytes_in_it(place: Path, name: str, examples: int):
    check_damages(place, name, bytes_edits, damaged, examples)
