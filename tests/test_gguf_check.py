"""What is wrong in a GGUF file is found when it is read back, and writing one needs little memory.

Takes a few seconds. Every case puts a mistake into a file, or into the code that writes it, and was
seen to pass unnoticed when the comparison that finds it was taken out of the check.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_llama
from gguf import GGUFWriter
from llama_cpp import WeightsOf, export
from texts import write_small_llama3_tokenizer

from publish import gguf_file, gguf_tensors
from publish.gguf_check import check_gguf
from publish.gguf_file import write_gguf
from publish.gguf_read import GGUFHeader

KINDS = ["f16", "bf16", "q8_0"]
ROWS_OF_32 = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_small_llama3_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    names = {"bos_token": "<|begin_of_text|>", "pad_token": "<|finetune_right_pad_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def weights() -> WeightsOf:
    return WeightsOf(tiny_llama(vocab_size=400, **ROWS_OF_32))


def problem(weights: WeightsOf, folder: Path, kind: str, file: Path) -> str:
    """What the check says, which has to be one line with the file's name in it."""
    with pytest.raises(ValueError) as caught:
        check_gguf(weights, folder, kind, file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_any_changed_byte_of_a_tensor_is_found(weights, folder, tmp_path, kind):
    file = tmp_path / "m.gguf"
    export(weights, folder, kind, file)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    places = {name: place.start for name, place in GGUFHeader(file).tensors.items()}
    for name, start in places.items():
        changed = bytearray(whole)
        changed[start + rng.integers(32)] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        assert name in problem(weights, folder, kind, file)


@pytest.mark.parametrize("size", [0, 3, 100, 5_000, -1, -100])
def test_a_file_that_ends_too_early_is_found(weights, folder, tmp_path, size):
    file = tmp_path / "m.gguf"
    export(weights, folder, "f16", file)
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    problem(weights, folder, "f16", file)


# A setting's name as the writer has it, and what it says instead; None: nothing.
WRONG_SETTINGS = {
    "chat_template": "{{ messages }}",
    "tokenizer_pre": "llama-bpe",
    "tokenizer_model": "llama",
    "eos_token_id": 1,
    "eot_token_id": 1,
    "eom_token_id": 1,
    "bos_token_id": 3,
    "pad_token_id": 3,
    "add_bos_token": True,
    "add_space_prefix": True,
    "rope_freq_base": 10_000.0,
    "rope_dimension_count": 16,
    "key_length": 16,
    "head_count": 4,
    "head_count_kv": 6,
    "layer_norm_rms_eps": 1e-6,
    "context_length": 2048,
    "block_count": 2,
    "token_merges": ["a b"],
    "token_types": [1] * 400,
}


@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "wrong"])
@pytest.mark.parametrize("setting", WRONG_SETTINGS)
def test_a_wrong_or_missing_setting_is_found(
    weights, folder, tmp_path, monkeypatch, setting, is_missing
):
    method = getattr(GGUFWriter, f"add_{setting}")

    def wrong(writer: GGUFWriter, value: object) -> None:
        if not is_missing:
            method(writer, WRONG_SETTINGS[setting])

    monkeypatch.setattr(GGUFWriter, f"add_{setting}", wrong)
    write_gguf(weights, folder, "f16", tmp_path / "m.gguf")
    problem(weights, folder, "f16", tmp_path / "m.gguf")


def test_two_swapped_tokens_are_found(weights, folder, tmp_path, monkeypatch):
    def swapped(writer: GGUFWriter, tokens: list[str]) -> None:
        writer.add_array("tokenizer.ggml.tokens", [*tokens[:-2], tokens[-1], tokens[-2]])

    monkeypatch.setattr(GGUFWriter, "add_token_list", swapped)
    write_gguf(weights, folder, "f16", tmp_path / "m.gguf")
    assert "token 398 is" in problem(weights, folder, "f16", tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_the_wrong_order_are_found_even_if_the_check_shares_the_mistake(
    weights, folder, tmp_path, monkeypatch, kind
):
    """The rows are put back by other means than they were reordered."""

    def unchanged(name: str, tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
        return tensor

    monkeypatch.setattr(gguf_tensors, "in_rope_pairs", unchanged)
    write_gguf(weights, folder, kind, tmp_path / "m.gguf")
    found = problem(weights, folder, kind, tmp_path / "m.gguf")
    assert "blk.0.attn_q.weight differs from the model by more than rounding" in found


@pytest.mark.parametrize("factors", [None, torch.ones(16), torch.full((16,), 32.0)])
def test_missing_or_wrong_rope_factors_are_found(weights, folder, tmp_path, monkeypatch, factors):
    monkeypatch.setattr(gguf_file, "rope_factors", lambda config: factors)
    write_gguf(weights, folder, "f16", tmp_path / "m.gguf")
    assert "rope_freqs.weight" in problem(weights, folder, "f16", tmp_path / "m.gguf")


def test_a_missing_and_a_superfluous_tensor_are_found(weights, folder, tmp_path):
    file = tmp_path / "m.gguf"
    untied = WeightsOf(tiny_llama(vocab_size=400, **ROWS_OF_32 | {"tie_word_embeddings": False}))
    export(untied, folder, "f16", file)
    assert "output.weight is left over" in problem(weights, folder, "f16", file)
    export(weights, folder, "f16", file)
    assert "output.weight is missing" in problem(untied, folder, "f16", file)
    assert "type 1" in problem(weights, folder, "q8_0", file)


def test_a_disk_that_is_full_is_one_clear_line(weights, folder, tmp_path):
    """/dev/full is a file that takes nothing."""
    (tmp_path / "m.gguf").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"m\.gguf cannot be written: .*No space left") as caught:
        write_gguf(weights, folder, "f16", tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from model.config import LlamaConfig
from publish.gguf_check import check_gguf
from publish.gguf_file import write_gguf

class Weights:
    config = LlamaConfig(400, 4096, 4096, 3, 64, 64, 64, 64, 1e-5, 1e4, None, True)

    def __init__(self, count):
        names = [f"model.layers.{i}.self_attn.{x}_proj.weight" for i in range(3) for x in "qo"]
        self.shapes = dict.fromkeys(names[:count], (4096, 4096))

    def tensor(self, name):
        return torch.linspace(-1, 1, 4096**2).view(4096, 4096)

def peak(count):
    write_gguf(Weights(count), Path(sys.argv[1]), sys.argv[3], Path(sys.argv[2]))
    check_gguf(Weights(count), Path(sys.argv[1]), sys.argv[3], Path(sys.argv[2]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / (4 * 4096**2)

print(peak(0), peak(6))
"""


def test_memory_holds_about_two_tensors_however_many_there_are(folder, tmp_path):
    """Six matrices of 64 MB each. Measured: room for 2.5 of them, in f16 2.6, in q8_0 2.2."""
    arguments = [folder, tmp_path / "m.gguf", "bf16"]
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    before, after = map(float, child.stdout.split())
    assert after - before < 3
