"""A model and data that train in a second, and runs of train.py on them: what its tests share."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import single, tensors_of
from texts import WORDS, write_small_llama3_tokenizer
from token_data import write_jsonl

import train
from data.batches import order_of_epoch
from lora.durable import MANIFEST
from lora.run_folder import OWN_FILES

ROOT = Path(__file__).parents[1]
TINY = {"vocab_size": 400, "num_hidden_layers": 1}
MEASURED = ("tokens_per_second", "seconds", "peak_memory_bytes")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The working directory, with `model`, `rows.jsonl` and token files of its own; one thread."""
    with workplace(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs of a file take place, the uninterrupted one among them."""
    folder = tmp_path_factory.mktemp("runs")
    with workplace(folder):
        assert train.main(flags(output="uninterrupted")) == 0
        yield folder


@contextmanager
def workplace(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """`small` as a context, in which more can be patched."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(train, "LONGEST_SAMPLE", 4)
        patch.chdir(folder)
        torch.set_num_threads(1)
        write_small_model(folder / "model")
        write_jsonl(folder / "rows.jsonl", short_rows(40))
        yield patch
    torch.set_num_threads(threads)


def write_small_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of one layer with a tokenizer of Llama 3's kind."""
    write_small_llama3_tokenizer(folder)
    return single(folder, tensors_of(seed=seed, **TINY), **TINY)


def short_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one or two exchanges, a few words each, all different."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        turns = []
        for _ in range(rng.randrange(1, 3)):
            words = rng.choices(WORDS.split(), k=rng.randrange(2, 14))
            turns.append({"from": "human", "value": f"{number} {' '.join(words[::2])}"})
            turns.append({"from": "gpt", "value": " ".join(words[1::2])})
        rows.append({"conversations": turns})
    return rows


def flags(**changes: Any) -> dict[str, Any]:
    """A run with all that could go wrong when it is resumed: about 20 steps in two epochs.

    With dropout, several micro-batches a step, a last step of the epoch that is smaller, warm-up,
    evaluation and samples. None removes a flag.
    """
    given = {
        "model": "model",
        "data": ("rows.jsonl",),
        "output": "run",
        "lr": 5e-3,
        "epochs": 2.0,
        "batch_size": 4,
        "max_length": 256,
        "lora_rank": 4,
        "lora_dropout": 0.1,
        "micro_batch_tokens": 400,
        "eval_size": 3,
        "eval_every": 4,
        "sample_prompts": ("Hi",),
        "sample_every": 10,
        "save_every": 100,
        "dtype": "fp32",
        "device": "cpu",
    } | changes
    return {name: value for name, value in given.items() if value is not None}


def command_line(given: Mapping[str, Any]) -> list[str]:
    """The same flags as they would be typed."""
    words = []
    for name, value in given.items():
        if value is not False:
            words.append("--" + name.replace("_", "-"))
        if isinstance(value, tuple):
            words.extend(map(str, value))
        elif not isinstance(value, bool):
            words.append(str(value))
    return words


def child(
    *arguments: str, folder: Path, setup: str = "", timeout: float = 120, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs train.py in a process of its own, in `folder`, after the Python code of `setup`."""
    with start(*arguments, folder=folder, setup=setup, **more) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*arguments: str, folder: Path, setup: str = "", **more: str) -> subprocess.Popen[str]:
    """Starts train.py in a process of its own; its output is to be read from two pipes."""
    program = [sys.executable, str(ROOT / "train.py")]
    if setup:
        code = f"import os, signal, sys, train\n{setup}\nsys.exit(train.command(sys.argv[1:]))"
        program = [sys.executable, "-c", code]
    return subprocess.Popen(
        [*program, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def forked(given: dict[str, Any], setup: Callable[[], None] = lambda: None) -> int:
    """Trains in a process of its own that starts at once, a copy of this one; returns its id."""
    process = os.fork()
    if process == 0:
        try:
            os.setsid()
            order_of_epoch.cache_clear()
            setup()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(train.main(given))
        finally:
            os._exit(99)
    return process


def ranks(size: int) -> list[dict[str, str]]:
    """What torchrun sets in the environment of each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(size)
    ]


def begun_together(
    size: int, given: dict[str, Any], setup: Callable[[int], None] = lambda rank: None
) -> list[int]:
    """Starts so many processes that train together; returns their ids."""

    def as_rank(rank: int, environment: Mapping[str, str]) -> Callable[[], None]:
        def prepare() -> None:
            if size > 1:
                os.environ.update(environment)
            setup(rank)

        return prepare

    return [forked(given, as_rank(rank, more)) for rank, more in enumerate(ranks(size))]


def together(
    size: int, given: dict[str, Any], setup: Callable[[int], None] = lambda rank: None
) -> list[int]:
    """How so many processes end that train together."""
    return [status(process) for process in begun_together(size, given, setup)]


def status(process: int) -> int:
    """How a process ended: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def metrics(run: Path) -> list[dict[str, Any]]:
    """All records of a run but for the times, the speed and the memory."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal however a run came about.

    The sha256 of the last checkpoint's and the adapter's files, and the metrics. Not what names
    the folder and --resume, or times: the model card, and the run's own files.
    """
    newest = sorted((run / "checkpoints").iterdir())[-1]
    files = [path for path in newest.iterdir() if path.name not in (*OWN_FILES, MANIFEST)]
    files += (run / "adapter").glob("adapter_*")
    hashes = {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    return hashes | {"metrics": metrics(run)}


def litter(folder: Path) -> list[str]:
    """Files and folders below `folder` that were to be removed or renamed."""
    found = folder.rglob(".unfinished*")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def adapter_weights(run: Path) -> dict[str, np.ndarray]:
    """The finished adapter's weights."""
    from safetensors.numpy import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")
