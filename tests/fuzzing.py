"""Files with random damage, and a process that may not take more memory than a file is worth."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

SPARE = 192 << 20  # bytes that reading may take beside twice the file's size: libraries' own pools

# What no program writes into these files.
ODD = [
    None, True, -1, 0, 1, 7, 2**31, 2**63, 10**400, 1e308, -0.5, float("nan"), float("inf"), "",
    "\n", "x", "../x", "\0", "\ud800", "<|eot_id|>", "x" * 5000, [], {}, [[]], {"a": {}}, [None],
    ["x"], {"\n": 1},
]  # fmt: skip
DEEP = json.loads("[" * 400 + "]" * 400)

# Where, as a share of the file. Small numbers are drawn most; multiplied they lie anywhere.
PLACES = st.integers(0, 2**16 - 1).map(lambda n: n * 40_503 % 2**16 / 2**16)

bytes_edits = st.lists(
    st.tuples(
        PLACES,
        st.sampled_from("flip cut insert drop double".split()),
        st.binary(max_size=9),
    ),
    min_size=1,
    max_size=4,
)
json_edits = st.lists(
    st.tuples(PLACES, st.sampled_from([*ODD, DEEP, "drop", "rename"])),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """A file in which bytes are others, more or fewer."""
    for place, kind, new in edits:
        at = int(place * len(content))
        before, after = content[:at], content[at:]
        if kind == "flip" and after:
            content = before + bytes([after[0] ^ (1 << len(new) % 8)]) + after[1:]
        elif kind == "cut":
            content = before
        elif kind == "insert":
            content = before + new + after
        elif kind == "drop":
            content = before + after[len(new) + 1 :]
        elif kind == "double":
            content = before + after[:200] + after
    return content


def changed(content: bytes, edits: list[tuple[float, Any]]) -> bytes:
    """A JSON file in which values are others, gone, or under another name."""
    raw = json.loads(content)
    for place, new in edits:
        nodes = list(places(raw))
        if not nodes:
            break
        parent, key = nodes[min(int(place * len(nodes)), len(nodes) - 1)]
        if new == "drop":
            del parent[key]
        elif new == "rename" and isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        else:
            parent[key] = json.loads(json.dumps(new))
    return json.dumps(raw).encode()


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in JSON, as the object or list that it is in and its name or number there."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in list(items):
        yield node, key
        yield from places(value)


def refused_in_one_line(read: Callable[[], object], named: str) -> None:
    """Reads a file; if it is refused, then by a ValueError of one line with the file's name."""
    try:
        read()
    except (ValueError, OSError) as error:
        assert not isinstance(error, UnicodeError | json.JSONDecodeError), repr(error)
        assert "\n" not in str(error) and named in str(error), repr(error)


def in_little_memory(size: int, check: Callable[[], None], output: Path) -> None:
    """Runs `check` in a copy of this process that gets twice `size` bytes more, and `SPARE`."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # its threads are not copied, and it would wait for them
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (now + 2 * size + SPARE,) * 2)
            check()
            status = 0
        except BaseException:
            output.write_text(traceback.format_exc())
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == 0, output.read_text() if output.exists() else f"ended with {status}"


def fuzz(
    edits: st.SearchStrategy, examples: int, check: Callable[[Any], None]
) -> Callable[[], None]:
    """A check of that many damages, always the same ones."""
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    return settings(hypothesis.given(edits)(lambda drawn: check(drawn)))
