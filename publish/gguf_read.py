"""What a GGUF file says: its settings, and where its tensors are. `gguf_file.py` has the format.

It is read without the library that writes it, which would find its own mistakes right.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
# ggml's docs/gguf.md, gguf_metadata_value_type.
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class TensorPlace:
    """A tensor's shape (the last dimension is contiguous), its ggml type, and its first byte."""

    shape: tuple[int, ...]
    kind: int
    start: int


class GGUFHeader:
    """Everything in a GGUF file but the tensors' numbers.

    Attributes:
        settings: values by key.
        tensors: places by name.

    Raises:
        ValueError: if the file is not one, or ends too early.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self.data, self.at = data, 0
            try:
                self.read(path)
            except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
                raise ValueError(f"{path} is not a whole GGUF file: {error}") from None
            finally:
                del self.data

    def read(self, path: Path) -> None:
        if self.take("4s") != MAGIC or self.take("I") != VERSION:
            raise ValueError(f"{path} is not a GGUF file of version {VERSION}")
        tensor_count, setting_count = self.take("Q"), self.take("Q")
        self.settings = {self.text(): self.value(self.take("I")) for _ in range(setting_count)}
        places = [(self.text(), self.place()) for _ in range(tensor_count)]
        first = -(-self.at // ALIGNMENT) * ALIGNMENT
        self.tensors = {n: TensorPlace(p.shape, p.kind, first + p.start) for n, p in places}
        if len(self.tensors) < tensor_count or len(self.settings) < setting_count:
            raise ValueError(f"{path} names a tensor or a setting twice")

    def take(self, code: str) -> Any:
        """The next number (or bytes) of the file, by `struct`'s code."""
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        return self.take(f"{self.take('Q')}s").decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(count)]
        return self.take(NUMBERS[kind])

    def place(self) -> TensorPlace:
        shape = tuple(self.take("Q") for _ in range(self.take("I")))
        return TensorPlace(shape[::-1], self.take("I"), self.take("Q"))
