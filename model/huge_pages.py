"""Memory in huge pages, for what is read from end to end again and again.

A processor looks up in the page table where each page of memory lies, and remembers only a few
thousand of them (its TLB). On x86 pages are 4 KB, so reading 2 GB takes half a million look-ups, on
a virtual machine through two layers of tables. Linux has pages of 2 MB too and, unless it is set to
`never`, gives them to programs that ask
(https://docs.kernel.org/admin-guide/mm/transhuge.html).

PyTorch can ask by itself (`THP_MEM_ALLOC_ENABLE=1`), but for all large tensors of a program or for
none. Those that come and go are slower for it: benchmarks/README.md has the figures.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

PIECE = 8 * 2**20  # bytes that are asked for at least; what is never written is only reserved
ALIGNED = 64  # tensors begin at multiples of so many bytes, a cache line


class HugePages:
    """Hands out memory for tensors, one behind the other, so that small ones share a page.

    Where a system has no such pages, or none free, it is memory like any other. A piece is given
    back when the last tensor in it is gone.
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
    """So many bytes of new memory, in huge pages if there are any."""
    if hasattr(mmap, "MADV_HUGEPAGE"):  # on Linux
        with contextlib.suppress(OSError):  # a kernel without them, or no memory is left
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            return torch.frombuffer(memory, dtype=torch.uint8)
    return torch.empty(size, dtype=torch.uint8)  # which tells of a lack of memory as PyTorch does
