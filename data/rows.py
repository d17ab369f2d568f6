"""Rows of data files, read in batches, so that memory does not grow with their number.

.parquet   as the Hub has most data sets
.jsonl     one JSON object a line
.json      one list of objects; read whole, since JSON cannot be read in part

A text with bytes that are no UTF-8 does not end the reading, for it is one row's flaw: in JSON such
bytes become lone surrogates, and a parquet file's row, which would lose more than that, is None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

AGAIN = "download it again"
SUFFIXES = (".parquet", ".jsonl", ".json")
Row = dict[str, Any]


def count_rows(path: Path) -> int | None:
    """How many rows a file has, if it tells without being read."""
    if path.suffix.lower() != ".parquet":
        return None
    with open_parquet(path) as file:
        return file.metadata.num_rows


def read_rows(path: Path, batch_size: int = 256) -> Iterator[list[Row | None]]:
    """Yields the rows of a file, `batch_size` at a time; None stands for one that is not UTF-8.

    Raises:
        ValueError: if the file cannot be read, is damaged, or is not what its name says; with the
            line, if it has lines.
    """
    readers = {".parquet": parquet_rows, ".jsonl": jsonl_rows, ".json": json_rows}
    return readers[path.suffix.lower()](path, batch_size)


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file, its footer read. Its columns are then read a stretch at a time."""
    try:
        return pq.ParquetFile(path, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not a whole parquet file ({first_line(error)}): {AGAIN}"
        ) from None


def parquet_rows(path: Path, batch_size: int) -> Iterator[list[Row | None]]:
    """Yields the rows of a .parquet file."""
    with open_parquet(path) as file:
        batches = file.iter_batches(batch_size)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"{path}: damaged parquet file ({first_line(error)}): {AGAIN}"
                ) from None
            if batch is None:
                return
            yield rows_of(batch)


def rows_of(batch: pa.RecordBatch) -> list[Row | None]:
    """The rows of a batch. Parquet does not promise that its texts are UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for index in range(len(batch)) for row in rows_of(batch.slice(index, 1))]


def jsonl_rows(path: Path, batch_size: int) -> Iterator[list[Row | None]]:
    """Yields the rows of a .jsonl file; lines without anything in them are passed over."""
    rows: list[Row | None] = []
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            rows.append(json_object(line, f"{path}, line {number}"))
            if len(rows) == batch_size:
                yield rows
                rows = []
    if rows:
        yield rows


def json_object(line: bytes, place: str) -> Row:
    """The object that a line of JSON is."""
    row = parsed(
        line.rstrip(), place, "the line is cut or damaged, or this is no file of JSON lines"
    )
    if not isinstance(row, dict):
        raise ValueError(f"{place}: holds {kind_of(row)}, not an object {{...}}: make it one")
    return row


def json_rows(path: Path, batch_size: int) -> Iterator[list[Row | None]]:
    """Yields the rows of a .json file."""
    with open_bytes(path) as file:
        content = file.read()
    advice = "it is cut or damaged, or has one object a line; then name it .jsonl"
    rows = parsed(content, str(path), advice)
    if not isinstance(rows, list):
        raise ValueError(
            f"{path}: holds {kind_of(rows)}, not a list of objects [{{...}}, ...]: make it one"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, row {number}: holds {kind_of(row)}, not an object {{...}}: make it one"
            )
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def open_bytes(path: Path) -> BinaryIO:
    """The file, opened for reading."""
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def parsed(content: bytes, place: str, advice: str) -> Any:
    """What JSON in UTF-8 says, a byte order mark left off; wrong bytes become lone surrogates."""
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}: not JSON ({error.msg} at character {error.pos + 1}): {advice}"
        ) from None
    except RecursionError:
        raise ValueError(
            f"{place}: not JSON that can be read (nested too deeply): take it out"
        ) from None


def kind_of(value: Any) -> str:
    """What JSON calls a value's kind."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def first_line(error: BaseException) -> str:
    """The first line of a message that may have many."""
    return (str(error).splitlines() or [type(error).__name__])[0]
