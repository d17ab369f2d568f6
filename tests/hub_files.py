"""What the Hub of hub_server.py announces of a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

LARGE_FILES = (".safetensors", ".bin", ".gguf", ".pth", ".parquet", ".model", "tokenizer.json")


@dataclass(frozen=True)
class File:
    """A file of a repo: where its bytes are, and what the Hub announces of them."""

    path: Path
    size: int
    blob_id: str
    sha256: str | None  # of a large file only: those are in git-lfs

    @classmethod
    def of(cls, path: Path) -> File:
        """The announcement of a file on disk, large if its name says so."""
        content = path.read_bytes()
        if path.name.endswith(LARGE_FILES):
            return cls.large(path, content)
        return cls(path, len(content), git_hash(content), None)

    @classmethod
    def large(cls, path: Path, content: bytes) -> File:
        """The announcement of a file in git-lfs."""
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = "version https://git-lfs.github.com/spec/v1\n"
        pointer += f"oid sha256:{sha256}\nsize {len(content)}\n"
        return cls(path, len(content), git_hash(pointer.encode()), sha256)


def git_hash(content: bytes) -> str:
    """The name that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(name: str, file: File) -> dict[str, object]:
    """A file as /api/models/ID/revision/REV?blobs=true lists it."""
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": 130}
    entry = {"rfilename": name, "size": file.size, "blobId": file.blob_id}
    return entry | ({"lfs": lfs} if file.sha256 else {})


def tree_entry(name: str, file: File) -> dict[str, object]:
    """A file as /api/models/ID/tree/REV lists it."""
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
    entry = {"type": "file", "path": name, "size": file.size, "oid": file.blob_id}
    return entry | ({"lfs": lfs} if file.sha256 else {})
