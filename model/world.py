"""The processes that train together: where this one computes, and how it adds up with the others.

`torchrun --nproc-per-node=N` starts N processes and tells each its rank. Started by plain `python`
there is one, and every method below is trivial, so the training code never asks whether it is
distributed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from model.device import choose_device

# The main process alone downloads and tokenises while the others wait.
TIMEOUT = timedelta(hours=4)
T = TypeVar("T")


def is_main() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return number_from_torchrun("RANK", 0) == 0


def number_from_torchrun(name: str, alone: int) -> int:
    """A variable that torchrun sets; `alone` without it. Raises ValueError if it is no number."""
    value = os.environ.get(name, str(alone))
    if not value.isdecimal():
        raise ValueError(f"{name} is {value!r}, not a number as torchrun sets it: unset it")
    return int(value)


def say(text: str) -> None:
    """Prints a text. When whoever read it is gone (a closed pipe, a terminal), training goes on."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")


class World:
    """This process among all.

    Args:
        device: "auto", "cuda", "mps" or "cpu".

    Attributes:
        rank: this process's number, from 0.
        size: how many processes there are.
        device: where this one computes; every process on a machine has a GPU of its own.
        is_main: whether this process speaks and writes for all.
        sharing: how many processes share the memory of the device.

    Raises:
        ValueError: if there is no such device, or fewer GPUs than processes.
    """

    def __init__(self, device: str) -> None:
        self.rank = number_from_torchrun("RANK", 0)
        self.size = number_from_torchrun("WORLD_SIZE", 1)
        self.is_main = is_main()
        self.device = choose_device(device)
        if self.device.type == "mps" and self.size > 1:
            raise ValueError(f"{self.size} processes cannot share mps; use one, or --device cpu")
        if self.device.type == "cuda":
            local_rank = number_from_torchrun("LOCAL_RANK", 0)
            if local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"process {local_rank} of this machine has no GPU of its own, there are "
                    f"{torch.cuda.device_count()}; lower --nproc-per-node"
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        on_this_machine = number_from_torchrun("LOCAL_WORLD_SIZE", 1)
        self.sharing = 1 if self.device.type == "cuda" else on_this_machine
        if self.size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through this block alone; the others follow when it is done.

        What it downloads or tokenises, they find.
        """
        if not self.is_main:
            dist.barrier()
        yield
        if self.is_main and self.size > 1:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, claim: bool) -> bool:
        """Whether it holds in any process. All must ask."""
        if self.size == 1:
            return claim
        return bool(self.sum(torch.tensor(int(claim), device=self.device)).item())

    def least(self, value: int) -> int:
        """The smallest `value` of any process. All must ask."""
        if self.size == 1:
            return value
        least = torch.tensor(value, device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least.item())

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds up the gradients of all processes, in one message.

        LoRA trains so few numbers that they fit one: that is all that DistributedDataParallel
        would do for us, without wrapping the model. A process without work has none and adds zero.
        """
        if self.size == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
        for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = summed.view_as(p)

    def print(self, text: str) -> None:
        """Prints a text, once for all processes."""
        if self.is_main:
            say(text)

    def print_all(self, texts: Iterable[str]) -> None:
        """Prints each of them."""
        for text in texts:
            self.print(text)

    def note(self, text: str) -> None:
        """Prints a line above the progress bar, once for all processes."""
        if self.is_main:
            with tqdm.external_write_mode(file=sys.stdout):
                say(text)

    def watched(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The items one by one, with a progress bar, once for all processes."""
        return tqdm(items, what, leave=False, disable=None if self.is_main else True)

    def close(self) -> None:
        """Parts with the other processes."""
        if self.size > 1:
            dist.destroy_process_group()
