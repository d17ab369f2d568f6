"""What was written is read again and compared, before it has its name.

Seen to fail when: nothing was compared; only the beginning was; a file that is longer passed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from lora import durable
from lora.durable import MANIFEST, publish_folder, verify_folder, verify_written, write_file

OLD, NEW = {"weights": b"old" * 10}, {"weights": b"new!" * 8, "more": b"", "state": b"22"}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "shorter": lambda content: content[:-1],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "longer by a part": lambda content: content + b"new!",
    "other at its beginning": lambda content: b"N" + content[1:],
    "other at its end": lambda content: content[:-1] + b"?",
}


@pytest.mark.parametrize("part", [4, 5, 32, 1000])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_each_difference_is_noticed(tmp_path, monkeypatch, damage, part):
    """Whether a part that is read ends where the file does, or not."""
    monkeypatch.setattr(durable, "PART", part)
    written = publish_folder(tmp_path / "step-000007", NEW)
    verify_written(tmp_path / "step-000007", written)
    for name in ("weights", MANIFEST):
        (tmp_path / "step-000007" / name).write_bytes(damage(written[name]))
        with pytest.raises(OSError, match=f"{name} is not what was written") as caught:
            verify_written(tmp_path / "step-000007", written)
        assert caught.value.errno == errno.EIO
        write_file(tmp_path / "step-000007" / name, written[name])


def test_an_empty_file_that_is_not_empty_is_noticed(tmp_path):
    written = publish_folder(tmp_path / "step-000007", NEW)
    (tmp_path / "step-000007" / "more").write_bytes(b"more")
    with pytest.raises(OSError, match="more is not what was written"):
        verify_written(tmp_path / "step-000007", written)


def test_a_file_that_is_not_there_is_named(tmp_path):
    written = publish_folder(tmp_path / "step-000007", NEW)
    (tmp_path / "step-000007" / "state").unlink()
    with pytest.raises(OSError, match="state is missing") as caught:
        verify_written(tmp_path / "step-000007", written)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("bad", ["weights", MANIFEST])
def test_a_disk_that_keeps_something_else_replaces_nothing(tmp_path, monkeypatch, bad):
    publish_folder(tmp_path / "step-000007", OLD)

    def keeps_zeros(path: Path, content: bytes) -> None:
        write_file(path, bytes(len(content)) if path.name == bad else content)

    monkeypatch.setattr(durable, "write_file", keeps_zeros)
    with pytest.raises(OSError, match=f"{bad} is not what was written"):
        publish_folder(tmp_path / "step-000007", NEW)
    verify_folder(tmp_path / "step-000007")
    assert (tmp_path / "step-000007" / "weights").read_bytes() == OLD["weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]
