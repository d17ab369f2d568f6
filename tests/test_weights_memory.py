"""How much memory loading takes: the weights and little else. Linux only, about 10 seconds.

The peak is read from the kernel (VmHWM) in a process of its own, less the peak right after the
imports. `ru_maxrss` would not do: a child starts with its parent's. Weights that need no cast are
mapped rather than read, so they count as pages of the file (RssFile) and not as RssAnon.

Seen to fail when the file was read whole and then cast; when the model was built on the CPU; when
tensors were cloned; when one open file served all tensors, which keeps what has been read mapped.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_config

from model.config import LlamaConfig
from model.llama import Llama
from model.weights import SINGLE_FILE

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has"
)
MEASURE = """
import sys
from pathlib import Path
import torch
from model.weights import load_model

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

peak, own = memory("VmHWM:"), memory("RssAnon:")
model = load_model(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
for parameter in model.parameters():
    parameter.flatten()[::1024].sum()  # every page of memory is really used
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(size, memory("VmHWM:") - peak, memory("RssAnon:") - own)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Llama of 400 MB in bfloat16; all zeros, so that it takes no room on the disk."""
    folder = tmp_path_factory.mktemp("llama")
    raw = tiny_config(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=11,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
    )
    (folder / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dict(raw))
    entries, end = {}, 0
    for name, parameter in model.named_parameters():
        start, end = end, end + 2 * parameter.numel()
        shape = list(parameter.shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    assert 390e6 < end < 410e6
    header = json.dumps(entries).encode()
    with (folder / SINGLE_FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return folder


def measured(folder: Path, dtype: str) -> tuple[int, int, int]:
    """The bytes of the weights, of the peak, and of private memory after loading as `dtype`."""
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), dtype],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    size, peak, own = map(int, child.stdout.split())
    return size, peak, own


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_peak_while_loading_is_at_most_a_quarter_above_the_weights(dtype, folder):
    size, peak, _ = measured(folder, dtype)
    assert 0.9 * size <= peak <= 1.25 * size


def test_weights_that_need_no_cast_are_not_copied(folder):
    size, _, own = measured(folder, "bfloat16")
    assert own <= 0.02 * size
