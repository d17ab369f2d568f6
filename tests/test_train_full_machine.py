"""A disk that is full and memory that is too small: one line, and what was saved stays whole.

About 10 seconds. Seen to fail when: an allocation that the processor refused ended in a traceback.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import child, command_line, flags, litter, outcome

import train
from lora import durable
from lora.run_folder import RunFolder

FILES = 8  # of a checkpoint


def ended(capsys: pytest.CaptureFixture[str], **given: Any) -> str:
    """The one line that a run ends with that had begun."""
    capsys.readouterr()
    assert train.command(command_line(flags(**given))) == 2
    err = capsys.readouterr().err
    assert err.startswith("train.py: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("file", range(FILES + 1), ids=lambda n: f"at file {n}")
def test_a_full_disk_leaves_the_older_checkpoints_whole(small, capsys, monkeypatch, file):
    """The last file is the manifest; the one after it belongs to the checkpoint that follows."""
    whole, calls = durable.write_file, []

    def write_file(path: Path, content: bytes) -> None:
        if "step-" in path.parent.name:
            calls.append(path)
            if len(calls) == FILES + 1 + file:  # in the second checkpoint, or at the third's begin
                path.write_bytes(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", write_file)
        message = ended(capsys, save_every=4, keep=1)
    assert "No space left on device" in message and "--resume" in message
    left = 4 if file < FILES else 8
    assert RunFolder(small / "run", writes=False).saved_steps() == [left]
    durable.verify_folder(small / "run" / "checkpoints" / f"step-{left:06d}")
    assert litter(small) == []
    assert train.main(flags(resume=True)) == 0
    assert train.main(flags(output="whole")) == 0
    assert outcome(small / "run") == outcome(small / "whole")


def test_a_file_that_may_not_grow_is_a_full_disk_too(small):
    """A real refusal by the system, at the size of the optimizer's file."""
    assert train.main(flags(output="first", max_steps=2)) == 0
    size = max(p.stat().st_size for p in (small / "first" / "checkpoints").rglob("*"))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 1}, {size - 1}))"
    result = child(*command_line(flags(max_steps=3)), folder=small, setup=limit)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "File too large" in result.stderr
    assert RunFolder(small / "run", writes=False).saved_steps() == []
    assert litter(small / "run") == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


CPU_REFUSAL = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_REFUSAL), MemoryError()],
)
def test_too_little_memory_says_what_to_lower(small, capsys, monkeypatch, error):
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(train, "summed_loss", fail)
    message = ended(capsys, eval_every=0, sample_every=0)
    for flag in ("--micro-batch-tokens", "--checkpoint-activations on"):
        assert flag in message


def test_what_the_processor_really_says_is_known_for_what_it_is(small, capsys, monkeypatch):
    monkeypatch.setattr(train, "summed_loss", lambda *a: torch.empty(1 << 60, dtype=torch.uint8))
    assert "--micro-batch-tokens" in ended(capsys, eval_every=0, sample_every=0)


def test_another_runtime_error_is_a_bug_and_keeps_its_traceback(small, monkeypatch):
    def fail(*arguments: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(train, "summed_loss", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        train.command(command_line(flags()))
