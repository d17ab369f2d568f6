"""How much memory a merge takes: two of the largest matrix, not the model. Linux only.

Looked at every millisecond, in a process of its own, is the memory that no file backs (RssAnon),
less that right after the imports. Pages of the base's file, which the system may take away, come
and go as it likes and do not count. Measured: 1.3 to 2.1. About 15 seconds.

Seen to fail when all tensors were kept; the rounding of a matrix was measured at once; what had
been written was kept while the next matrix was computed.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_config
from exports import ALL
from texts import write_small_llama3_tokenizer
from torch import nn

from lora.adapter import save_adapter
from lora.config import BaseModel
from lora.inject import add_lora
from model.config import LlamaConfig
from model.llama import Llama
from model.weights import SINGLE_FILE

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has"
)
LARGEST = 4 * 1024 * 24_576  # bytes of the largest matrix in float32: 100 MB
MEASURE = """
import sys, threading, time
from pathlib import Path
import export, publish.source, publish.model_folder

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

def watch():
    global most
    while True:
        most = max(most, own())
        time.sleep(0.001)

before = most = own()
threading.Thread(target=watch, daemon=True).start()
assert export.command(sys.argv[1:]) == 0
print(most - before)
"""


def large_base(folder: Path, layers: int) -> Path:
    """A Llama in bfloat16 of 300 MB of float32 a layer; all zeros, so that it takes no room."""
    raw = tiny_config(
        vocab_size=400,
        hidden_size=1024,
        intermediate_size=24_576,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        dtype="bfloat16",
    )
    write_small_llama3_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dict(raw))
    entries, end = {}, 0
    for name, parameter in model.named_parameters():
        start, end = end, end + 2 * parameter.numel()
        shape = list(parameter.shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with (folder / SINGLE_FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return folder


def peak_of_export(place: Path, layers: int, dtype: str) -> float:
    """The peak of an export, less that of its imports, in largest matrices of float32."""
    base = large_base(place / f"base-{layers}", layers)
    adapter, merged = place / f"adapter-{layers}", place / f"merged-{layers}-{dtype}"
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_folder(base))
    add_lora(model, ALL)
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    save_adapter(model, ALL, BaseModel("some/llama"), adapter)
    del model
    arguments = [str(adapter), "--model", str(base), "--merged", str(merged), "--dtype", dtype]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1]) / LARGEST


def test_memory_holds_two_matrices_however_many_there_are(tmp_path):
    """The one that is computed, another in the same size beside it, and a little for all else."""
    one, two = (peak_of_export(tmp_path, layers, "bf16") for layers in (1, 2))
    assert max(one, two) <= 2.3


def test_memory_holds_two_matrices_in_float32_too(tmp_path):
    assert peak_of_export(tmp_path, 1, "fp32") <= 2.3
