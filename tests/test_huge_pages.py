"""Memory in huge pages.

Seen to fail when tensors overlapped, when they began anywhere, when no huge pages were asked for,
and when a piece was kept for good.
"""

from __future__ import annotations

import errno
import gc
import mmap
import re
from pathlib import Path

import pytest
import torch

from model import huge_pages
from model.huge_pages import ALIGNED, PIECE, HugePages

SHAPES = [(3, 5, 7), (1, 1, 1), (PIECE // 2048, 1024, 2), (2, 3, 4), (PIECE, 1, 1), (5, 1, 3)]
DTYPES = [torch.bfloat16, torch.uint8, torch.bfloat16, torch.float32, torch.uint8, torch.uint8]

needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no huge pages"
)


def filled(memory: HugePages) -> list[torch.Tensor]:
    """Tensors of all sizes, each filled with its own number."""
    pairs = zip(SHAPES, DTYPES, strict=True)
    return [memory.empty(*pair).fill_(i) for i, pair in enumerate(pairs)]


def check(tensors: list[torch.Tensor]) -> None:
    for i, (tensor, shape, dtype) in enumerate(zip(tensors, SHAPES, DTYPES, strict=True)):
        assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
        assert tensor.data_ptr() % ALIGNED == 0
        assert (tensor == i).all(), "another tensor lies in the same place"


def test_tensors_have_memory_of_their_own():
    check(filled(HugePages()))


def test_small_tensors_share_a_piece():
    memory = HugePages()
    first, second = memory.empty((100,), torch.uint8), memory.empty((100,), torch.uint8)
    assert second.data_ptr() == first.data_ptr() + 128


def test_where_there_are_no_huge_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    check(filled(HugePages()))


def test_where_the_kernel_has_none(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, option: int) -> None:  # type: ignore[override]
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Refusing)
    check(filled(HugePages()))


def test_a_lack_of_memory_is_told_as_pytorch_tells_it():
    """Callers know its error for that."""
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        HugePages().empty((2**60,), torch.uint8)


@needs_huge_pages
def test_huge_pages_are_asked_for():
    tensor = HugePages().empty((PIECE,), torch.uint8)
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)
    for found in maps[1:]:
        start, end = (int(place, 16) for place in found.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            [flags] = re.findall(r"^VmFlags: (.*)$", found, flags=re.M)
            assert "hg" in flags.split()
            return
    pytest.fail("the tensor is in no mapping")


@needs_huge_pages
def test_a_piece_is_given_back_with_its_last_tensor(monkeypatch):
    alive = set()

    class Counted(mmap.mmap):
        def __init__(self, *args: object, **kwargs: object) -> None:
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    monkeypatch.setattr(huge_pages.mmap, "mmap", Counted)
    memory = HugePages()
    kept = memory.empty((10,), torch.uint8), memory.empty((PIECE,), torch.uint8)
    del memory
    gc.collect()
    assert len(alive) == 2
    del kept
    gc.collect()
    assert not alive
