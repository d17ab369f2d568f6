"""Reading the rows of data files: the three kinds, in batches, and files that are broken.

A few seconds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.rows import count_rows, read_rows

ROWS = [
    {"conversations": [{"from": "human", "value": text}], "score": number}
    for number, text in enumerate(["one", "zwei\r\n", "três\u2028", "四", "\u0085five 🙂", "", "7"])
]


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)


def write_jsonl(path: Path) -> None:
    path.write_bytes(b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in ROWS))


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1))


WRITERS = {".parquet": write_parquet, ".jsonl": write_jsonl, ".json": write_json}


def all_rows(path: Path, batch_size: int = 256) -> list[Any]:
    return [row for rows in read_rows(path, batch_size) for row in rows]


def refusal(path: Path) -> str:
    """What reading a file is refused with, which must be one line that names the file."""
    with pytest.raises(ValueError) as error:
        all_rows(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("suffix", [*WRITERS, ".PARQUET", ".JSONL"])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_every_row_comes_once_and_in_order(tmp_path: Path, suffix: str, batch_size: int):
    """Seen to fail when the last, incomplete batch of a .jsonl file was left out."""
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix.lower()](path)
    batches = list(read_rows(path, batch_size))
    assert [row for rows in batches for row in rows] == ROWS
    assert max(map(len, batches)) == min(batch_size, len(ROWS))


def test_a_parquet_file_tells_its_rows_beforehand(tmp_path: Path):
    for suffix, write in WRITERS.items():
        write(tmp_path / f"rows{suffix}")
    counts = [count_rows(tmp_path / f"rows{suffix}") for suffix in WRITERS]
    assert counts == [len(ROWS), None, None]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\n \n" + content.replace(b"\n", b"\n\n\t\n"),
        lambda content: content.removesuffix(b"\n"),
    ],
    ids=["byte order mark", "line ends of Windows", "blank lines", "no line end at the end"],
)
def test_json_lines_of_other_editors_are_read(tmp_path: Path, change: Callable[[bytes], bytes]):
    """Seen to fail when the byte order mark was kept, and when blank lines were read."""
    path = tmp_path / "rows.jsonl"
    write_jsonl(path)
    path.write_bytes(change(path.read_bytes()))
    assert all_rows(path) == ROWS


def test_files_without_rows_have_none(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    (tmp_path / "b.json").write_bytes(b"[]")
    pq.write_table(pa.table({"messages": pa.array([], pa.string())}), tmp_path / "c.parquet")
    assert [all_rows(path) for path in sorted(tmp_path.iterdir())] == [[], [], []]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"conversations": [{"from": "human", "va', "not JSON (Unterminated string"),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter at character"),
        (b'{"a": 1} {"a": 2}', "not JSON (Extra data at character 10"),
        (b'["a"]', "holds a list, not an object"),
        (b'"a"', "holds a text, not an object"),
        (b"12", "holds a number, not an object"),
        (b"true", "holds true or false, not an object"),
        (b"null", "holds null, not an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(tmp_path: Path, line: bytes, message: str):
    """Seen to fail when lines were counted from 0, and when blank ones were not counted."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"b": 2}\n' + line + b"\n")
    said = refusal(path)
    assert said.startswith(", line 4: ")
    assert message in said


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": 1}\n{"a": 2}\n', "then name it .jsonl"),
        (b'[{"a": 1}, {"a"', "cut or damaged"),
        (b"", "cut or damaged"),
        (b'{"data": [{"a": 1}]}', "holds an object, not a list of objects"),
        (b"3", "holds a number, not a list"),
        (b'[{"a": 1}, [2]]', "row 2: holds a list, not an object"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_json_file_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    assert message in refusal(path)


@pytest.mark.parametrize("is_one, is_called", list(itertools.permutations(WRITERS, 2)))
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, is_one: str, is_called: str
):
    path = tmp_path / f"rows{is_called}"
    WRITERS[is_one](path)
    refusal(path)


def test_a_parquet_file_cut_anywhere_is_refused(tmp_path: Path):
    write_parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "cut.parquet"
    for length in [*range(0, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "not a whole parquet file" in refusal(path)


def test_a_parquet_file_with_overwritten_pages_is_refused(tmp_path: Path):
    """Its footer is intact. Seen to fail when only opening the file was guarded."""
    path = tmp_path / "rows.parquet"
    write_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    assert "damaged parquet file" in refusal(path)


def test_what_cannot_be_opened_is_refused(tmp_path: Path):
    for suffix in WRITERS:
        refusal(tmp_path / f"missing{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        refusal(tmp_path / f"folder{suffix}")


def unchecked_texts(texts: list[bytes]) -> pa.Array:
    """Bytes that a file claims to be UTF-8, as a careless writer makes it."""
    options = pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True)
    return pc.cast(pa.array(texts), options=options)


def test_a_parquet_row_that_is_no_utf8_is_none_and_its_neighbours_are_whole(tmp_path: Path):
    """Seen to fail when its whole batch was given up."""
    texts = [f"text {number}".encode() for number in range(10)]
    texts[4] = b"caf\xe9"
    turns = pa.StructArray.from_arrays(
        [unchecked_texts([b"human"] * 10), unchecked_texts(texts)], ["from", "value"]
    )
    table = pa.table({"conversations": pa.ListArray.from_arrays(list(range(11)), turns)})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = all_rows(tmp_path / "rows.parquet", batch_size=6)
    assert rows[4] is None
    assert [row["conversations"][0]["value"] for row in rows if row] == [
        f"text {number}" for number in range(10) if number != 4
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_bytes_that_are_no_utf8_become_lone_surrogates_in_json(tmp_path: Path, suffix: str):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path)
    path.write_bytes(path.read_bytes().replace(b"one", b"caf\xe9"))
    rows = all_rows(path)
    assert rows[0]["conversations"][0]["value"] == "caf\udce9"
    assert rows[1:] == ROWS[1:]
