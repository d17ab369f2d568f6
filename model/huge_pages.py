"""Memory in pages of 2 MB, for what is read from end to end again and again.

A processor looks up where each page of memory lies before it can read it. Pages are 4 KB unless a
program asks for larger ones, so reading 2 GB takes half a million look-ups, each in tables that are
in memory themselves, and on a virtual machine in two layers of them. Linux gives pages of 2 MB to
whoever asks (https://docs.kernel.org/admin-guide/mm/transhuge.html).
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

PIECE = 64 * 2**20  # bytes that are asked for at once; what is never written takes no memory
ALIGNED = 64  # bytes between which tensors begin: a cache line, and the widest register


class HugePages:
    """Hands out memory for tensors, one behind the other, so that small ones share a large page.

    Where a system has no such pages, or none free, it is memory like any other. It is given back
    when the last tensor in a piece is gone.
    """

    def __init__(self) -> None:
        self.left = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU whose content does not matter yet."""
        size = math.prod(shape) * dtype.itemsize
        taken = -(-size // ALIGNED) * ALIGNED
        if taken > len(self.left):
            self.left = piece(max(taken, PIECE))
        memory, self.left = self.left[:size], self.left[taken:]
        return memory.view(dtype).view(shape)


def piece(size: int) -> Tensor:
    """So many bytes."""
    if hasattr(mmap, "MADV_HUGEPAGE"):  # on Linux
        with contextlib.suppress(OSError):  # a kernel without them, or no memory is left
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            return torch.frombuffer(memory, dtype=torch.uint8)
    return torch.empty(size, dtype=torch.uint8)  # which tells of a lack of memory as PyTorch does
