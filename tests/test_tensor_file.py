"""Files of tensors, against the safetensors library, which reads them.

Seen to fail when: a view was written as its whole storage; the header was not filled up; offsets
counted numbers instead of bytes; tensors stood in the model's order.
"""

from __future__ import annotations

import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from lora.tensor_file import file_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def some_tensors() -> dict[str, torch.Tensor]:
    """Of all dtypes and of shapes that are easily written wrongly, in no special order."""
    found = {}
    for dtype in DTYPES:
        matrix = torch.randn(5, 7).to(dtype)
        kinds = {"matrix": matrix, "view": matrix.T[1:3], "number": matrix[2, 3], "ä \n": matrix[1]}
        found |= {f"{dtype}.{name}": tensor for name, tensor in kinds.items()}
    return found | {"empty": torch.empty(0, 3), "long": torch.randn(2, 3, 1, 4)}


def test_the_library_reads_what_was_written(tmp_path):
    tensors = some_tensors()
    metadata = {"format": "pt", "base_sha256": "0f", "a": "ä"}
    path = tmp_path / "some.safetensors"
    path.write_bytes(file_bytes(tensors, metadata))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == tensors.keys()
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor), name


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_the_bytes_are_those_of_the_library(metadata):
    """So a result that it has written is the same one, and not replaced."""
    tensors = some_tensors() | {f"layers.{number}.x": torch.randn(3) for number in range(12)}
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    assert file_bytes(tensors, metadata) == save(tensors, metadata or None)


@pytest.mark.parametrize("name_length", range(8))
def test_the_tensors_are_aligned_whatever_the_header_is(name_length):
    """As the format asks for; so they can be used where the file is mapped."""
    content = file_bytes({"n" * name_length: torch.ones(3)}, {})
    assert int.from_bytes(content[:8], "little") % 8 == 0
    assert load(content)["n" * name_length].tolist() == [1, 1, 1]


def test_the_same_tensors_are_the_same_bytes():
    """The library's own writer is another order of metadata now and then."""
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2)}
    names = [f"key{number}" for number in range(8)]
    contents = set()
    for _ in range(5):
        random.shuffle(names)
        contents.add(file_bytes(tensors, {name: "x" for name in names}))
    assert len(contents) == 1
    assert load(contents.pop()).keys() == load(save(tensors)).keys()
