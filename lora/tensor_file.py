"""Files of tensors, in the safetensors format.

    8 bytes      length of the header, little-endian
    the header   JSON: {"NAME": {"dtype": "BF16", "shape": [...], "data_offsets": [from, to]}, ...}
    the tensors  one after the other

The library that reads them writes them too, but it copies every tensor twice, here once, and in its
header the metadata stand in an order that differs from call to call. Written here, the same tensors
are the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The whole file with these tensors, which may be on any device.

    In the library's order: the widest numbers first, so that all are aligned, and then by name.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    kinds = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
    on_cpu = [tensors[name].cpu() for name in names]
    return b"".join([header(kinds, metadata), *map(raw_bytes, on_cpu)])


def header(
    kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """The beginning of a file, up to its first tensor.

    Args:
        kinds: dtype and shape of each tensor, in the order in which they will follow.
        metadata: whatever is to be known of them.
    """
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for name, (dtype, shape) in kinds.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(math.ceil(len(text) / 8) * 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor on the CPU, not copied."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
