"""Token files that are made once: what their key depends on, and damage. About 20 seconds."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from token_data import content, entries, made, random_rows, small_chat_format, write_jsonl

import data.dataset
from data import token_cache
from data.chat_format import ChatFormat
from data.dataset import tokenize
from data.sources import Source
from data.token_cache import FILES, MANIFEST, cache_key, default_cache, publish, seal

ROOT = Path(__file__).parents[1]
ROWS = random_rows(600)


@pytest.fixture(scope="module")
def chat_format(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    return small_chat_format(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def test_the_second_time_nothing_is_read_or_tokenised(
    tmp_path: Path, source: Source, chat_format: ChatFormat, monkeypatch: pytest.MonkeyPatch
):
    """Also when the files have moved. Seen to fail when the key held their path."""
    first, report = made(source, chat_format, tmp_path / "cache")

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(data.dataset, "write_tokens", fail)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(source.files[0], tmp_path / "elsewhere" / "other.jsonl")
    second, other = made(Source("other", (Path(moved),), "abc"), chat_format, tmp_path / "cache")
    assert content(second) == content(first)
    assert (other.name, other.revision) == ("other", "abc")
    other.name, other.revision = report.name, report.revision
    assert other == report
    with pytest.raises(AssertionError):
        tokenize(source, chat_format, 101, "assistant", tmp_path / "cache")


def test_the_key_holds_all_that_decides_the_tokens(
    tmp_path: Path, source: Source, chat_format: ChatFormat
):
    """Seen to fail when max_length, train_on, the date, or the vocabulary was left out."""
    other = write_jsonl(tmp_path / "other.jsonl", ROWS[1:])
    dated = small_chat_format(tmp_path / "a", date="1 Jan 2026")
    larger = small_chat_format(tmp_path / "b")
    larger.tokenizer.vocabulary.backend.add_tokens(["unheard-of"])
    keys = [
        cache_key(source.files, chat_format, 100, "assistant"),
        cache_key(source.files, chat_format, 99, "assistant"),
        cache_key(source.files, chat_format, 100, "last"),
        cache_key(source.files, chat_format, 100, "all"),
        cache_key(other.files, chat_format, 100, "assistant"),
        cache_key(source.files + other.files, chat_format, 100, "assistant"),
        cache_key(other.files + source.files, chat_format, 100, "assistant"),
        cache_key(source.files, dated, 100, "assistant"),
        cache_key(source.files, larger, 100, "assistant"),
    ]
    assert len(set(keys)) == len(keys)
    again = small_chat_format(tmp_path / "c")
    assert cache_key(source.files, again, 100, "assistant") == keys[0]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def turn_a_bit(file: Path) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)


def zero_the_end(file: Path) -> None:
    size = file.stat().st_size
    truncate(file)
    os.truncate(file, size)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def make_it_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [truncate, empty, turn_a_bit, zero_the_end, lengthen, os.remove, make_it_a_folder]
)
def test_a_damaged_file_is_noticed_and_made_again(
    tmp_path: Path,
    source: Source,
    chat_format: ChatFormat,
    capsys: pytest.CaptureFixture,
    name: str,
    damage: Callable[[Path], None],
):
    """Seen to fail when only sizes were compared, and when the damaged folder was kept."""
    cache = tmp_path / "cache"
    whole = content(made(source, chat_format, cache)[0])
    (key,) = entries(cache)
    damage(cache / key / name)
    capsys.readouterr()
    assert content(made(source, chat_format, cache)[0]) == whole
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"{cache / key} is damaged (")
    assert said.count("\n") == 0
    assert content(made(source, chat_format, cache)[0]) == whole
    assert capsys.readouterr().err == ""
    assert entries(cache) == [key]


@pytest.mark.parametrize("manifest", [None, b"", b"{}", b"[]", b'{"tokens.bin": 3}', b"\xff"])
def test_a_folder_without_a_true_manifest_does_not_count(
    tmp_path: Path, source: Source, chat_format: ChatFormat, manifest: bytes | None
):
    """Seen to fail when files that the manifest does not name were trusted."""
    cache = tmp_path / "cache"
    whole = content(made(source, chat_format, cache)[0])
    (key,) = entries(cache)
    (cache / key / MANIFEST).unlink()
    if manifest is not None:
        (cache / key / MANIFEST).write_bytes(manifest)
    (cache / key / FILES[0]).write_bytes(b"")
    assert content(made(source, chat_format, cache)[0]) == whole


def test_files_are_on_disk_before_the_folder_has_its_name(
    tmp_path: Path, source: Source, chat_format: ChatFormat, monkeypatch: pytest.MonkeyPatch
):
    """Seen to fail when the files were not synced, and without the last sync."""
    events: list[str] = []
    sync, rename = token_cache.sync, Path.rename

    def record(path: Path) -> None:
        events.append(path.name.partition("-")[0])
        sync(path)

    def record_rename(path: Path, target: Path) -> Path:
        events.append("RENAME")
        return rename(path, target)

    monkeypatch.setattr(token_cache, "sync", record)
    monkeypatch.setattr(Path, "rename", record_rename)
    made(source, chat_format, tmp_path / "cache")
    assert events == [*FILES, MANIFEST, "building", "RENAME", "cache"]


def sealed(folder: Path, text: str) -> Path:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(text)
    seal(folder)
    return folder


def test_the_first_to_finish_publishes(tmp_path: Path):
    """Seen to fail when the second one replaced what others may have open."""
    folder = tmp_path / "key"
    publish(sealed(tmp_path / "building-1", "first"), folder)
    publish(sealed(tmp_path / "building-2", "second"), folder)
    assert (folder / FILES[0]).read_text() == "first"
    turn_a_bit(folder / FILES[0])
    publish(tmp_path / "building-2", folder)
    assert (folder / FILES[0]).read_text() == "second"
    assert entries(tmp_path) == ["key"]


def test_two_that_replace_a_damaged_folder_at_once_do_it_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Seen to fail when both could find it damaged before either had replaced it."""
    folder = sealed(tmp_path / "key", "damaged")
    turn_a_bit(folder / FILES[0])
    both_have_looked = threading.Barrier(2)
    damage_of = token_cache.damage_of

    def look(folder: Path) -> str | None:
        damage = damage_of(folder)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_looked.wait(timeout=0.3)
        return damage

    monkeypatch.setattr(token_cache, "damage_of", look)
    new = [sealed(tmp_path / f"building-{name}", name) for name in ("1", "2")]
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(publish, new, [folder] * 2):
            pass
    assert damage_of(folder) is None
    assert len(entries(tmp_path)) == 2  # the folder, and what the second has made for nothing


def test_a_file_in_the_place_of_the_folder_is_replaced(
    tmp_path: Path, source: Source, chat_format: ChatFormat
):
    cache = tmp_path / "cache"
    cache.mkdir()
    key = cache_key(source.files, chat_format, 100, "assistant")
    (cache / key).write_text("not a folder")
    made(source, chat_format, cache)
    assert (cache / key / MANIFEST).is_file()
    assert entries(cache) == [key]


def test_a_cache_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, source: Source, chat_format: ChatFormat
):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="the cache .*file/cache cannot be written .*XDG_CACHE"):
        made(source, chat_format, tmp_path / "file" / "cache")


@pytest.mark.parametrize("where", ["data.dataset.digest_of", "data.token_cache.sync"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path,
    source: Source,
    chat_format: ChatFormat,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
):
    """Amid the writing, and when it is to be on disk. Seen to fail when OSErrors went through."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, fail)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left.*\): make room"):
        made(source, chat_format, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_the_cache_is_the_users_own(
    tmp_path: Path, source: Source, chat_format: ChatFormat, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    tokenize(source, chat_format, 100, "assistant")
    assert len(entries(tmp_path / "xdg" / "llama-lora")) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "llama-lora"


def test_a_source_without_rows_has_an_empty_folder(tmp_path: Path, chat_format: ChatFormat):
    """Empty files cannot be mapped. Seen to fail without the exception for them."""
    source = write_jsonl(tmp_path / "rows.jsonl", [])
    for _ in range(2):
        kept, report = made(source, chat_format, tmp_path / "cache")
        assert (len(kept), report.rows_read, list(kept)) == (0, 0, [])
