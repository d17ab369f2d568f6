"""The folder of an ordinary model, which needs no LoRA to run: merged weights and the base's files.

The weights are written tensor by tensor, so that memory holds one of them at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.hub import SMALL_FILES
from data.tokenizer import Tokenizer
from lora.durable import as_json, write_parts
from lora.progress import gigabytes
from lora.tensor_file import header, raw_bytes
from model.config import read_json
from model.device import DTYPES
from model.generation_config import FILE as GENERATION_FILE
from model.generation_config import stop_ids
from model.weights import INDEX_FILE, SINGLE_FILE
from publish.chat import read_chat
from publish.merge import MergedWeights, Rounding
from publish.new_output import new_folder
from publish.source import Source

# What config.json calls them.
CONFIG_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
PIECE = 2**20  # numbers that are rounded at a time: a rounded copy of a whole tensor takes memory


def write_model(source: Source, folder: Path, dtype_name: str, max_shard_bytes: int) -> str:
    """Writes the merged model into a new folder, which is there whole or not at all.

    Args:
        source: adapter and base.
        folder: does not exist yet, or is empty.
        dtype_name: fp32, bf16 or fp16; auto for what config.json names.
        max_shard_bytes: see `write_weights`.

    Returns:
        What was done, in words.

    Raises:
        ValueError: if base or adapter are damaged, or do not fit each other.
        OSError: if the disk is full or cannot be written; nothing is left of the folder.
    """
    weights = MergedWeights(source)
    base = source.model.path
    dtype = DTYPES[dtype_name] if dtype_name in DTYPES else getattr(torch, weights.config.dtype)
    small = small_files(base, dtype)
    total = sum(math.prod(shape) for shape in weights.shapes.values()) * dtype.itemsize
    with new_folder(folder) as temporary:
        for name, content in small.items():
            write_parts(temporary / name, [content])
        with tqdm(total=total, desc="merging", unit="B", unit_scale=True, disable=None) as bar:
            lost = write_weights(weights, dtype, max_shard_bytes, temporary, bar.update)
    adapted = sum(map(weights.is_adapted, weights.shapes))
    return (
        f"{folder}: {source.model.name} with {adapted} matrices changed, {gigabytes(total)} in "
        f"{CONFIG_NAMES[dtype]}; rounding changed the adapter's part by {lost:.2%}"
        + ("" if dtype == torch.float32 else " (--dtype fp32 keeps it exact)")
    )


def small_files(base: Path, dtype: torch.dtype) -> dict[str, bytes]:
    """Configuration and tokenizer of the merged model: the base's, byte for byte.

    With two exceptions: config.json names another dtype if there is one, and the end of a turn is
    among the ids that end an answer. In a base model's files it need not be: that goes on until the
    end of the text, and so would the merged one, though it has learnt to end its turns.
    """
    files = {name: (base / name).read_bytes() for name in SMALL_FILES if (base / name).is_file()}
    config = read_json(base / "config.json")
    names = {"dtype", "torch_dtype"} & config.keys() or {"dtype"}  # the latter in older files
    if any(config.get(name) != CONFIG_NAMES[dtype] for name in names):
        files["config.json"] = as_json(config | dict.fromkeys(names, CONFIG_NAMES[dtype]))
    stops, end_id = stop_ids(base), read_chat(base, Tokenizer.from_folder(base)).end_id
    if end_id is not None and end_id not in stops:
        path = base / GENERATION_FILE
        generation = read_json(path) if path.is_file() else {}
        files[GENERATION_FILE] = as_json(generation | {"eos_token_id": sorted(stops | {end_id})})
    return files


def write_weights(
    weights: MergedWeights,
    dtype: torch.dtype,
    max_shard_bytes: int,
    folder: Path,
    progress: Callable[[int], object],
) -> float:
    """Writes the merged weights as safetensors, in one file or in shards with an index.

    Args:
        weights: what to write.
        dtype: what every tensor is rounded to.
        max_shard_bytes: how many bytes of tensors a file holds, at most; only a tensor that is
            larger by itself has a file that holds more.
        folder: where to.
        progress: told how many more bytes were written.

    Returns:
        The rounding error relative to the adapter's part; see `Rounding`.

    Raises:
        ValueError: if a value is beyond the range of `dtype`.
        OSError: if the disk is full or cannot be written.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in weights.shapes.items()}
    shards = into_shards(sizes, max_shard_bytes)
    rounding = Rounding()

    def parts(names: Sequence[str]) -> Iterator[bytes | memoryview]:
        yield header({name: (dtype, weights.shapes[name]) for name in names}, {"format": "pt"})
        for name in names:
            for piece in rounded(weights, name, dtype, rounding):
                check_range(piece, name)
                yield raw_bytes(piece)
                del piece  # or the whole tensor would stay while the next one is made
            progress(sizes[name])

    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = shard_name(number, len(shards))
        write_parts(folder / file, parts(names))
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_parts(folder / INDEX_FILE, [as_json(index)])
    return rounding.share


def rounded(
    weights: MergedWeights, name: str, dtype: torch.dtype, rounding: Rounding
) -> Iterator[Tensor]:
    """One tensor in `dtype`, piece by piece; what that changes in an adapted one is counted."""
    if not weights.is_adapted(name):
        for piece in weights.stored(name).flatten().split(PIECE):
            yield piece.to(dtype)
        return
    rounding.whole += weights.update_norm(name) ** 2
    for exact in weights.merged(name).flatten().split(PIECE):
        piece = exact.to(dtype)
        rounding.lost += float((piece.float() - exact).norm()) ** 2
        yield piece


def check_range(tensor: Tensor, name: str) -> None:
    """Makes sure that all values are finite: float16 ends at 65504. Raises ValueError."""
    if not all(map(math.isfinite, tensor.aminmax())):
        raise ValueError(
            f"{name} has values that are not finite in {CONFIG_NAMES[tensor.dtype]}; "
            "choose another --dtype"
        )


def into_shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """The names in their order, cut where a file would get larger than `most` bytes."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def shard_name(number: int, count: int) -> str:
    """The name of a file of weights, as the Hub's are."""
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
