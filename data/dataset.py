"""Conversations as training reads them: token ids on disk, and which of them are to be learnt.

A data set is tokenised once, row by row into files that are then mapped into memory. So a hundred
thousand conversations take no more memory than a hundred, and the second run starts at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from data.chat_format import ChatFormat, Message, Rendered
from data.conversations import NOT_IN_FORMAT, NOTHING_LEFT, Flaw, conversation_of
from data.report import DataReport
from data.rows import Row, count_rows, read_rows
from data.sources import Source
from data.token_cache import (
    INDEX,
    REPORT,
    TARGETS,
    TOKENS,
    cache_key,
    default_cache,
    load_or_make,
)

S = TypeVar("S")
T = TypeVar("T")

TRAIN_ON = ("assistant", "all", "last")
AHEAD = 2  # batches that are tokenised while another one is written
INDEX_TYPE = np.dtype([("length", "<i8"), ("target_count", "<i8"), ("digest", "<u8")])


@dataclass(frozen=True)
class Example:
    """One conversation.

    Attributes:
        tokens: (n,) uint32.
        is_target: (n,) bool, whether a token is to be learnt; never the first, which nothing
            predicts.
    """

    tokens: np.ndarray
    is_target: np.ndarray


class Conversations:
    """The conversations of a data set that can be learnt from, in the order of its rows.

    Attributes:
        lengths: (N,) int64, in tokens.
        target_counts: (N,) int64, how many of these are to be learnt; at least 1.
        digests: (N,) uint64, equal for equal conversations: of their roles and texts, so that
            they do not depend on the model or on where a conversation is cut.
    """

    def __init__(self, folder: Path) -> None:
        index = mapped(folder / INDEX, INDEX_TYPE)
        self.lengths = np.ascontiguousarray(index["length"])
        self.target_counts = np.ascontiguousarray(index["target_count"])
        self.digests = np.ascontiguousarray(index["digest"])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = mapped(folder / TOKENS, np.dtype("<u4"))
        self.targets = mapped(folder / TARGETS, np.dtype(bool))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        """The conversation of that number, from 0; its arrays are read-only views of the files."""
        here = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return Example(self.tokens[here], self.targets[here])


def mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    """A file as an array that is read from disk where it is looked at."""
    if file.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(file, dtype, "r"))


def tokenize(
    source: Source,
    chat_format: ChatFormat,
    max_length: int,
    train_on: str,
    cache: Path | None = None,
) -> tuple[Conversations, DataReport]:
    """The conversations of a source as tokens, made once and then found in the cache.

    Args:
        source: where the rows are.
        chat_format: how the model wants them written.
        max_length: tokens; what is longer loses its end.
        train_on: `assistant` (every assistant turn with its end token), `all` (every token but the
            first), or `last` (only a conversation's last assistant turn).
        cache: the folder of all caches; by default `llama-lora` in the user's own.

    Returns:
        The conversations kept, and what became of the others.

    Raises:
        ValueError: if a setting makes no sense, a file cannot be read, or the cache not written.
    """
    if train_on not in TRAIN_ON:
        raise ValueError(f"--train-on is {train_on!r}; choose one of {', '.join(TRAIN_ON)}")
    if max_length < 2:
        raise ValueError(f"--max-length is {max_length}; a token and one to predict it from are 2")
    key = cache_key(source.files, chat_format, max_length, train_on)

    def make(folder: Path) -> None:
        write_tokens(folder, source, chat_format, max_length, train_on)

    def load(folder: Path) -> tuple[Conversations, DataReport]:
        counts = json.loads((folder / REPORT).read_text())
        here = {"name": source.name, "revision": source.revision}  # the files may have moved
        return Conversations(folder), DataReport(**counts | here)

    return load_or_make((cache or default_cache()) / key, make, load)


def write_tokens(
    folder: Path, source: Source, chat_format: ChatFormat, max_length: int, train_on: str
) -> None:
    """Writes the token files of a source, a batch of rows at a time."""
    report = DataReport(source.name, source.revision)
    with ExitStack() as stack:
        tokens, targets, index = (
            stack.enter_context((folder / name).open("wb")) for name in (TOKENS, TARGETS, INDEX)
        )
        batches = (usable(rows, report) for rows in all_rows(source))
        rendered_batches = made_ahead(partial(rendered_rows, chat_format), batches)
        for number, messages, rendered in chain.from_iterable(rendered_batches):
            if rendered is None:
                report.drop(number, NOT_IN_FORMAT)
                continue
            ids = np.array(rendered.ids[:max_length], "<u4")
            is_target = targets_of(rendered, train_on)[:max_length]
            count = int(np.count_nonzero(is_target))
            if count == 0:
                report.drop(number, NOTHING_LEFT)
                continue
            report.keep(len(ids), count, was_cut=len(rendered.ids) > max_length)
            tokens.write(ids.data)
            targets.write(is_target.data)
            index.write(np.array((len(ids), count, digest_of(messages)), INDEX_TYPE).tobytes())
    (folder / REPORT).write_text(json.dumps(dataclasses.asdict(report)))


def all_rows(source: Source) -> Iterator[list[Row | None]]:
    """Yields the rows of all files in batches, with a progress bar on a terminal."""
    counts = [count_rows(file) for file in source.files]
    total = None if None in counts else sum(count or 0 for count in counts)
    with tqdm(total=total, desc=f"tokenising {source.name}", unit=" rows", disable=None) as bar:
        for file in source.files:
            for rows in read_rows(file):
                yield rows
                bar.update(len(rows))


def usable(rows: Sequence[Row | None], report: DataReport) -> list[tuple[int, list[Message]]]:
    """The conversations among rows, each with its row's number; the other rows are counted."""
    conversations = []
    for row in rows:
        report.rows_read += 1
        try:
            conversations.append((report.rows_read, conversation_of(row)))
        except Flaw as flaw:
            report.drop(report.rows_read, str(flaw))
    return conversations


def rendered_rows(
    chat_format: ChatFormat, conversations: Sequence[tuple[int, list[Message]]]
) -> list[tuple[int, list[Message], Rendered | None]]:
    """Each conversation with its ids, computed at once; None if the format cannot express it."""
    batch: Sequence[Rendered | None]
    try:
        batch = chat_format.render_batch([messages for _, messages in conversations])
    except ValueError:
        batch = [rendered_or_none(chat_format, messages) for _, messages in conversations]
    return [(*row, rendered) for row, rendered in zip(conversations, batch, strict=True)]


def made_ahead(make: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yields what `make` makes of each item, and has the next two made while one is in use.

    Tokenising is hardly Python's work, so it goes on in other threads while Python writes; in two,
    so that one is at it while the other has to wait for Python.
    """
    with ThreadPoolExecutor(AHEAD) as threads:
        being_made: deque[Future[T]] = deque()
        for item in items:
            being_made.append(threads.submit(make, item))
            if len(being_made) > AHEAD:
                yield being_made.popleft().result()
        for last in being_made:
            yield last.result()


def rendered_or_none(chat_format: ChatFormat, messages: Sequence[Message]) -> Rendered | None:
    """A conversation's ids, unless the format cannot express it."""
    try:
        return chat_format.render(messages)
    except ValueError:
        return None


def targets_of(rendered: Rendered, train_on: str) -> np.ndarray:
    """Which tokens of a conversation are to be learnt, bool, before any cut."""
    # By way of bytes: `np.array` takes five times as long for a list of bools.
    is_target = np.frombuffer(bytearray(rendered.by_assistant), bool)
    if train_on == "all":
        is_target[:] = True
    if train_on == "last":
        *_, end = np.flatnonzero(is_target)
        elsewhere = np.flatnonzero(~is_target[:end])
        is_target[: elsewhere[-1] + 1] = False
    is_target[0] = False
    return is_target


def digest_of(messages: Sequence[Message]) -> int:
    """64 bits of the sha256 of who says what."""
    text = json.dumps([(message.role, message.content) for message in messages])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
