"""Which conversations a step trains on, and how they are packed: pure functions of (seed, step).

Nothing here has a state. To continue a run at step 700 is to ask for step 700; one process or
eight see the same conversations in the same step; and nothing has to be saved, restored or skipped.

The order of an epoch is a permutation drawn from (seed, epoch). Step s takes the next `batch_size`
places of it; the last step of an epoch takes what is left.

A step's conversations are packed end to end into *micro-batches*, so that none is padded. What
fits into memory limits a micro-batch, and the fullest one sets the pace when several processes work
side by side: so they are made equally full, as far as whole conversations allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data.dataset import Example

# Kernels for matrix products take rows in blocks, and some remainders are dear: products of 1,023
# rows take oneDNN up to half more time than those of 1,024. And PyTorch keeps a kernel, of up to
# half a MB, for each of the last thousand shapes.
MULTIPLE = 32


@dataclass(frozen=True)
class Mixture:
    """What an epoch is made of: conversations of several sources, each with its share.

    Args:
        sizes: how many conversations each source has; they are numbered through, source by source.
        weights: the sources' shares of an epoch, in any unit; None gives each its size, so that an
            epoch has every conversation once.

    An epoch is as long as all sources together. A source that does not fill its share starts over,
    in another order; one that exceeds it goes on in the next epoch where it stopped.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    @property
    def places(self) -> list[int]:
        """How many places in an epoch each source has."""
        if self.weights is None:
            return list(self.sizes)
        total, whole = sum(self.sizes), sum(self.weights)
        return [round(total * weight / whole) for weight in self.weights]

    @property
    def epoch_size(self) -> int:
        """How many conversations an epoch has."""
        return sum(self.places)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The conversations of an epoch in their order: int64, (epoch_size,)."""
        drawn, first = [], 0
        for source, (size, places) in enumerate(zip(self.sizes, self.places, strict=True)):
            wanted = np.arange(epoch * places, (epoch + 1) * places)  # of the source's endless row
            rounds = wanted // max(size, 1)
            for number in np.unique(rounds):
                order = np.random.default_rng([seed, 1, source, number]).permutation(size)
                drawn.append(first + order[wanted[rounds == number] % size])
            first += size
        together = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
        return together[np.random.default_rng([seed, 0, epoch]).permutation(len(together))]


@lru_cache(maxsize=2)
def order_of_epoch(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    """`mixture.epoch`, kept while its steps are taken."""
    return mixture.epoch(seed, epoch)


def steps_per_epoch(mixture: Mixture, batch_size: int) -> int:
    """The last step of an epoch may be smaller than the others."""
    return math.ceil(mixture.epoch_size / batch_size)


def conversations_of_step(mixture: Mixture, batch_size: int, seed: int, step: int) -> list[int]:
    """The numbers of the conversations that step `step`, counted from 0, trains on."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(mixture, batch_size))
    first = step_in_epoch * batch_size
    return order_of_epoch(mixture, seed, epoch)[first : first + batch_size].tolist()


def pack(lengths: Sequence[int], most_tokens: int, multiple_of: int = 1) -> list[list[int]]:
    """Shares out texts among micro-batches of at most `most_tokens`, about equally full.

    The longest first, each into the micro-batch that is emptiest so far (Graham, "Bounds on
    Multiprocessing Timing Anomalies", 1969: at most 4/3 of the best possible). If one overflows,
    the same is tried with one micro-batch more. A text longer than `most_tokens` gets one to
    itself.

    Args:
        lengths: tokens of each text.
        most_tokens: the limit.
        multiple_of: so many processes share the micro-batches; their number is a multiple of it,
            and some may be empty.

    Returns:
        For each micro-batch the places in `lengths` of its texts, in ascending order.
    """
    longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    fewest = math.ceil(sum(lengths) / most_tokens)
    count = max(1, math.ceil(fewest / multiple_of)) * multiple_of
    while True:
        packs: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for place in longest_first:
            emptiest = filled.index(min(filled))
            packs[emptiest].append(place)
            filled[emptiest] += lengths[place]
        too_full = any(n > most_tokens and len(p) > 1 for n, p in zip(filled, packs, strict=True))
        if not too_full:
            return [sorted(p) for p in packs]
        count += multiple_of * max(1, count // (32 * multiple_of))  # many at once where many fail


@dataclass(frozen=True)
class MicroBatch:
    """Conversations end to end, and what is to be learnt in them.

    Attributes:
        tokens: int64, (T,).
        lengths: tokens of each conversation, and of the filler behind them; they add up to T.
        before_target: int64, (M,), the places in `tokens` whose successor is a target, and then
            the first of them again, as fillers.
        targets: int64, (N,), those successors.
    """

    tokens: Tensor
    lengths: list[int]
    before_target: Tensor
    targets: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example]) -> MicroBatch:
        """Packs examples.

        A conversation's first token is never a target, since nothing of its own stands before it.
        Its last target and what comes after are no input, since nothing is predicted from them.
        Fillers make T and M multiples of `MULTIPLE`. The tokens among them are a text of their own,
        without a target.
        """
        tokens, lengths, before_target, targets, first = [], [], [], [], 0
        for example in examples:
            places = np.flatnonzero(example.is_target[1:])
            if len(places):
                length = int(places[-1]) + 1
                tokens.append(example.tokens[:length])
                lengths.append(length)
                before_target.append(first + places)
                targets.append(example.tokens[places + 1])
                first += length
        if filler := -first % MULTIPLE:
            tokens.append(np.zeros(filler, np.int64))
            lengths.append(filler)
        if before_target:
            again = np.full(-sum(map(len, targets)) % MULTIPLE, before_target[0][0])
            before_target.append(again)
        return cls(joined(tokens), lengths, joined(before_target), joined(targets))

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device, where it arrives while the processor goes on."""
        tensors = (self.tokens, self.before_target, self.targets)
        if device.type == "cuda":
            tensors = tuple(t.pin_memory() for t in tensors)  # type: ignore[assignment]
        moved = [t.to(device, non_blocking=True) for t in tensors]
        return MicroBatch(moved[0], self.lengths, moved[1], moved[2])


def joined(parts: Sequence[np.ndarray]) -> Tensor:
    """Arrays end to end, as one tensor of int64."""
    return torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64))


def hold_out(digests: np.ndarray, count: int) -> np.ndarray:
    """Chooses conversations to evaluate on, by what they say.

    Those whose hash is smallest. Equal conversations have equal hashes, so that no copy of a
    held-out one need be left to train on; and when a data set grows, most of the choice stays.

    Args:
        digests: (N,), a hash of each conversation.
        count: how many different ones, at most.

    Returns:
        The hashes of the chosen, ascending.
    """
    return np.unique(digests)[:count]
