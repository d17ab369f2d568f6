"""What a run trains on and what it is evaluated on, out of one or more data sets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.batches import Mixture, hold_out
from data.chat_format import ChatFormat
from data.dataset import Conversations, Example, tokenize
from data.report import DataReport, check_report, flaws_table
from data.sources import find_source, find_test_source


class Selection:
    """Conversations chosen out of data sets, numbered through.

    Attributes:
        lengths: (N,) int64, in tokens.
        target_counts: (N,) int64, how many of these are to be learnt.
        digests: (N,) uint64, equal for equal conversations.
    """

    def __init__(self, chosen: Sequence[tuple[Conversations, np.ndarray]]) -> None:
        self.sources = [conversations for conversations, _ in chosen]
        self.source = np.repeat(np.arange(len(chosen)), [len(rows) for _, rows in chosen])
        self.place = np.concatenate([rows for _, rows in chosen])

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(c, name)[rows] for c, rows in chosen])

        self.lengths, self.target_counts = joined("lengths"), joined("target_counts")
        self.digests = joined("digests")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        return self.sources[self.source[index]][self.place[index]]


@dataclass(frozen=True)
class TrainingData:
    """All conversations of a run.

    Attributes:
        train: those to learn from.
        held_out: those to evaluate on; none of them is in `train`, not even as a copy.
        mixture: how many of `train` each data set has, and its share of an epoch.
        reports: what became of each data set's rows.
    """

    train: Selection
    held_out: Selection
    mixture: Mixture
    reports: list[DataReport]

    def as_dict(self) -> dict[str, Any]:
        """What data.json says."""
        return {
            "sources": [dataclasses.asdict(report) for report in self.reports],
            "train": len(self.train),
            "held_out": len(self.held_out),
            "sha256": self.sha256,
        }

    @property
    def sha256(self) -> str:
        """What tells this data, in this order and cut like this, from any other."""
        total = hashlib.sha256()
        for part in (self.train, self.held_out):
            total.update(part.digests.tobytes() + part.lengths.tobytes())
            total.update(part.target_counts.tobytes())
        return total.hexdigest()

    @property
    def flaws(self) -> str:
        """A table of the rows that were dropped and why; empty if none were."""
        return flaws_table(self.reports)


def load_training_data(
    names: Sequence[str],
    weights: Sequence[float],
    held_out_from: str | None,
    held_out_size: int,
    chat_format: ChatFormat,
    max_length: int,
    train_on: str,
    strict: bool,
    max_dropped: float,
) -> TrainingData:
    """Reads, tokenises and divides the data.

    Args:
        names: data sets, as `find_source` takes them.
        weights: their shares of an epoch, or none.
        held_out_from: a data set whose test split is evaluated on; None: a part of `names`.
        held_out_size: how many conversations to evaluate on, at most; 0 for none.
        chat_format: how the model wants conversations written.
        max_length: tokens; longer conversations lose their end.
        train_on: which tokens are learnt; see `tokenize`.
        strict: refuse any flawed row.
        max_dropped: the largest share of flawed rows.

    Raises:
        ValueError: if a data set cannot be read or has too many flawed rows.
    """
    sources = [find_source(name) for name in names]
    if held_out_from and held_out_size:
        sources.append(find_test_source(held_out_from))
    loaded = [tokenize(source, chat_format, max_length, train_on) for source in sources]
    reports = [report for _, report in loaded]
    check_report(reports, strict, max_dropped)

    learnt_from = [conversations for conversations, _ in loaded[: len(names)]]
    candidates = [conversations for conversations, _ in loaded[len(names) :]]
    chosen = held_out_digests(candidates or learnt_from, held_out_size, bool(candidates))
    train = [(c, np.flatnonzero(~np.isin(c.digests, chosen))) for c in learnt_from]
    held_out = []
    for conversations in candidates or learnt_from:
        held_out.append((conversations, first_copies(conversations.digests, chosen)))
        chosen = np.setdiff1d(chosen, conversations.digests)  # each is evaluated on once
    mixture = Mixture(tuple(len(rows) for _, rows in train), tuple(weights) or None)
    check_shares(names, mixture)
    return TrainingData(Selection(train), Selection(held_out), mixture, reports)


def check_shares(names: Sequence[str], mixture: Mixture) -> None:
    """Refuses a data set of which an epoch would have nothing. Raises ValueError, naming it."""
    for name, size, places in zip(names, mixture.sizes, mixture.places, strict=True):
        if not size:
            raise ValueError(
                f"every conversation of {name} is held out to evaluate on, so none is left to "
                "train on; lower --eval-size, or choose other --eval-data"
            )
        if not places:
            raise ValueError(
                f"--data-weights leave {name} less than one conversation of an epoch's "
                f"{mixture.epoch_size}; raise its share, or leave it out"
            )


def held_out_digests(candidates: Sequence[Conversations], size: int, take_all: bool) -> np.ndarray:
    """What is evaluated on: at most `size` different ones, and a tenth unless all may be taken."""
    digests = np.concatenate([conversations.digests for conversations in candidates])
    different = len(np.unique(digests))
    return hold_out(digests, min(size, different if take_all else different // 10))


def first_copies(digests: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The places of the chosen conversations, of equal ones only the first."""
    _, first = np.unique(digests, return_index=True)
    return np.sort(first[np.isin(digests[first], chosen)])
