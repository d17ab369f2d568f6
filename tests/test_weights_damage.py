"""Damaged and hostile weight files: one line with the path, and nothing read from elsewhere.

Each of these bugs was put into the code once and seen to fail here: index and shards not compared,
or only one way; shard names joined to the folder as they are, checked by their letters alone, by
their place alone, or by their beginning; symlinks not resolved; a folder called blobs trusted
beside any model; the Hub's own blobs not trusted; errors of safetensors or of the system let
through.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
from pathlib import Path

import pytest
from conftest import tiny_llama
from model_folders import refusal, sharded, single, tensors_of, weight_map_of, write_index
from safetensors.torch import save_file

from model.weights import INDEX_FILE, SINGLE_FILE, load_model


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = sharded(tmp_path, tensors_of())
    second = "model-00002-of-00002.safetensors"
    part = {n: t for n, t in tensors_of().items() if weight_map_of(folder)[n] == second}
    twice = next(name for name in weight_map_of(folder) if name not in part)
    save_file(part | {twice: tensors_of()[twice]}, folder / second)
    assert twice in refusal(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    folder = sharded(tmp_path, tensors_of())
    right = weight_map_of(folder)
    name, shard = next(iter(right.items()))
    other = next(s for s in right.values() if s != shard)
    for wrong in (right | {name: other}, right | {"lm_head.weight": shard}):
        write_index(folder, wrong)
        assert "disagrees" in refusal(folder)
    del right[name]
    write_index(folder, right)
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "weight_map",
    [None, [], {}, "model.safetensors", {"model.norm.weight": 7}, {"a": [SINGLE_FILE]}],
)
def test_an_index_without_a_map_of_names_is_refused(weight_map, tmp_path):
    folder = sharded(tmp_path, tensors_of())
    write_index(folder, weight_map)
    refusal(folder)
    (folder / INDEX_FILE).write_text("[1")
    refusal(folder)


def test_a_missing_shard_and_missing_weights_are_refused(tmp_path):
    folder = sharded(tmp_path, tensors_of())
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors is missing" in refusal(folder)
    (folder / INDEX_FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "has neither" in refusal(folder)


def moved_shard(tmp_path: Path) -> tuple[Path, str, Path]:
    """A folder whose first shard is elsewhere: the folder, the shard's name, where it is."""
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder, tensors_of())
    shard = "model-00001-of-00002.safetensors"
    outside = tmp_path / "outside.safetensors"
    shutil.move(folder / shard, outside)
    return folder, shard, outside


@pytest.mark.parametrize(
    "name",
    [
        "{outside}",
        "../outside.safetensors",
        "a/../../outside.safetensors",
        "./../outside.safetensors",
        "..\\outside.safetensors",
        "%2e%2e/outside.safetensors",
        "%2e%2e%2foutside.safetensors",
        "file://{outside}",
        "https://example.com/outside.safetensors",
        "outside.safetensors\0",
        "\0../outside.safetensors",
        "~/outside.safetensors",
        "..",
        "",
        "outside.safetensors\n",
        "outside.bin",
    ],
)
def test_a_shard_name_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    folder, shard, outside = moved_shard(tmp_path)
    (folder / "a").mkdir()
    name = name.format(outside=outside)
    weight_map = weight_map_of(folder)
    write_index(folder, {t: name if s == shard else s for t, s in weight_map.items()})
    assert "outside the folder" in refusal(folder)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    folder, shard, outside = moved_shard(tmp_path)
    (folder / shard).symlink_to(outside)
    assert "outside the folder" in refusal(folder)
    (tmp_path / "blobs").mkdir()  # the name alone does not make it the Hub's cache
    shutil.move(outside, tmp_path / "blobs" / "outside.safetensors")
    (folder / shard).unlink()
    (folder / shard).symlink_to(tmp_path / "blobs" / "outside.safetensors")
    assert "outside the folder" in refusal(folder)


def test_a_link_into_the_store_of_the_hubs_cache_is_followed_and_no_other(tmp_path):
    repo = tmp_path / "models--some--llama"
    folder = repo / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    sharded(folder, tensors_of())
    for i, shard in enumerate(sorted(folder.glob("*.safetensors"))):
        shutil.move(shard, repo / "blobs" / f"beef{i}")
        shard.symlink_to(Path("../../blobs") / f"beef{i}")
    load_model(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    load_model(link)

    shutil.copy(repo / "blobs" / "beef0", tmp_path / "outside")
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    shard.symlink_to(tmp_path / "outside")
    assert "outside the folder" in refusal(folder)


def test_an_index_of_many_names_is_refused_quickly(tmp_path):
    """A hundred thousand shards; seen to fail when all their paths were resolved first."""
    folder = sharded(tmp_path, tensors_of())
    write_index(folder, {f"t{i}": f"s{i}.safetensors" for i in range(100_000)})
    started = time.process_time()
    refusal(folder)
    assert time.process_time() - started < 2


def weights_file(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def parts(folder: Path) -> tuple[bytes, bytes]:
    """The header and the body of a whole weights file."""
    whole = (folder / SINGLE_FILE).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return whole[8 : 8 + length], whole[8 + length :]


def test_a_file_cut_anywhere_is_refused(tmp_path):
    folder = single(tmp_path, tensors_of())
    path = folder / SINGLE_FILE
    whole = path.read_bytes()
    header = 8 + len(parts(folder)[0])
    cuts = [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1]
    for cut in cuts + random.Random(0).sample(range(len(whole)), 40):
        path.write_bytes(whole[:cut])
        assert "download it again" in refusal(folder)
    path.write_bytes(whole + b"\0")
    refusal(folder)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length_is_refused(length, tmp_path):
    folder = single(tmp_path, tensors_of())
    (folder / SINGLE_FILE).write_bytes(weights_file(*parts(folder), length))
    refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 8]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [2**63, 2**63 + 192]},
        {"data_offsets": None},
        {"shape": [2**40, 2**40]},
        {"shape": [-48]},
        {"shape": 48},
        {"dtype": "F31"},
        {"dtype": []},
    ],
    ids=str,
)
def test_a_header_that_lies_about_a_tensor_is_refused(changes, tmp_path):
    folder = single(tmp_path, tensors_of())
    header, body = parts(folder)
    entries = json.loads(header)
    entries["model.norm.weight"] |= changes
    (folder / SINGLE_FILE).write_bytes(weights_file(json.dumps(entries).encode(), body))
    refusal(folder)


def test_two_tensors_in_the_same_place_are_refused(tmp_path):
    folder = single(tmp_path, tensors_of())
    header, body = parts(folder)
    entries = json.loads(header)
    norm = entries["model.norm.weight"]
    norm["data_offsets"] = entries["model.layers.0.input_layernorm.weight"]["data_offsets"]
    (folder / SINGLE_FILE).write_bytes(weights_file(json.dumps(entries).encode(), body))
    refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(4096),
        bytes(range(256)) * 40,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2471645608\n",
        weights_file(b"[1]", b""),
        weights_file(b"\xff{}", b""),
        weights_file(b"[" * 100_000, b""),
        weights_file(b"{}", b""),
    ],
    ids="empty zeros garbage lfs list not-utf8 deep nothing".split(),
)
def test_a_file_that_is_something_else_is_refused(content, tmp_path):
    folder = single(tmp_path, tensors_of())
    (folder / SINGLE_FILE).write_bytes(content)
    refusal(folder)


@pytest.mark.parametrize("file", [SINGLE_FILE, INDEX_FILE, "model-00001-of-00002.safetensors"])
def test_a_directory_in_place_of_a_file_is_refused(file, tmp_path):
    folder = sharded(tmp_path, tensors_of())
    (folder / file).unlink(missing_ok=True)
    (folder / file).mkdir()
    refusal(folder)


def test_random_bytes_in_the_header_give_a_refusal_or_exactly_the_model(tmp_path):
    """What is still accepted, for instance a changed `__metadata__`, changes no shape or dtype."""
    folder = single(tmp_path, tensors_of())
    path = folder / SINGLE_FILE
    whole = path.read_bytes()
    header = 8 + len(parts(folder)[0])
    wanted = {name: p.shape for name, p in tiny_llama().named_parameters()}
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(header)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            model = load_model(folder)
        except ValueError as error:
            assert str(folder) in str(error)
        else:
            assert {name: p.shape for name, p in model.named_parameters()} == wanted
            assert all(p.device.type == "cpu" for p in model.parameters())
