"""From a folder of safetensors files to a model, without copying and without surprises.

The model is first built on the `meta` device, where tensors have a shape and no memory. Each of
its parameters is then replaced by the file's tensor: memory-mapped where nothing has to change, so
that the operating system reads it when it is first used; cast one at a time where `dtype` differs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import ANOTHER, LlamaConfig, read_json
from model.llama import Llama

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
FILE_DTYPES = ("F32", "BF16", "F16")
# RoPE's speeds, which early Llama files carry along; they follow from the configuration.
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Llama:
    """The model in `folder`, in evaluation mode.

    Args:
        folder: holds config.json and the weights, in one safetensors file or in shards.
        dtype: what the weights are cast to; None for the dtype that config.json names.
        device: where they are put.

    Raises:
        ValueError: if a file is missing or damaged, or if its tensors are not exactly the model's.
    """
    config = LlamaConfig.from_folder(folder)
    dtype = dtype or getattr(torch, config.dtype)
    with torch.device("meta"):
        model = Llama(config)
    files = files_of_tensors(folder)
    check_tensors(model, files, folder)
    for name, parameter in model.named_parameters():  # a tied head is listed once
        tensor = read_tensor(files[name], name, dtype, device)
        owner, _, attribute = name.rpartition(".")
        weight = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(owner), attribute, weight)
    if config.tie_word_embeddings:
        if "lm_head.weight" in files:
            check_tied_head(model, files["lm_head.weight"], dtype, device)
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor, by the files' own headers.

    Raises:
        ValueError: if there are no weights, if the index names a file outside the folder, or if
            index and files disagree.
    """
    if (folder / SINGLE_FILE).exists():
        return dict.fromkeys(tensor_names(folder / SINGLE_FILE), folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).exists():
        raise ValueError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; "
            "weights in other formats (.bin, .pth, .gguf) are not read, download these"
        )
    index = folder / INDEX_FILE
    try:
        weight_map = read_json(index).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{index}: {error}; {ANOTHER}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: has no weight_map; download it again")
    shards = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        path = shards[shard] = confined(folder, shard)
        present = set(tensor_names(path))
        promised = {name for name, where in weight_map.items() if where == shard}
        if present != promised:
            raise ValueError(
                f"{path}: {INDEX_FILE} disagrees with it about {some(present ^ promised)}; "
                "download both again"
            )
    return {name: shards[shard] for name, shard in weight_map.items()}


def confined(folder: Path, shard: str) -> Path:
    """The shard's path, sure to lie in the model's folder or in the Hub cache's store beside it.

    An index file is somebody else's text: taken at its word it could make us read any file.
    """
    path = folder / shard
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":  # the Hub's cache links into ../../blobs
        allowed.append(folder.resolve().parents[1] / "blobs")
    if not SHARD_NAME.fullmatch(shard) or path.resolve().parent not in allowed:
        raise ValueError(
            f"{folder / INDEX_FILE}: names a shard outside the folder: {shard!r}; use another model"
        )
    return path


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file's header."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; download the model again") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); download it again"
        ) from None


def check_tensors(model: Llama, files: dict[str, Path], folder: Path) -> None:
    """Makes sure that the files hold the model's parameters, all of them and nothing else.

    Raises:
        ValueError: naming the tensors that are missing, unknown, or of another shape or dtype.
    """
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = expected.keys() - files.keys()
    if missing:
        raise ValueError(f"{folder}: the weights lack {some(missing)}; download the model again")
    unknown = files.keys() - expected.keys() - tied
    unknown = {name for name in unknown if not DERIVED.fullmatch(name)}
    if unknown:
        raise ValueError(f"{folder}: the weights hold tensors no Llama has: {some(unknown)}")
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt") as file:
            for name in expected.keys() & set(file.keys()):
                found = file.get_slice(name)
                if found.get_shape() != expected[name]:
                    raise ValueError(
                        f"{path}: {name} has shape {found.get_shape()}, "
                        f"config.json makes it {expected[name]}; download both again"
                    )
                if found.get_dtype() not in FILE_DTYPES:
                    raise ValueError(
                        f"{path}: {name} is {found.get_dtype()}; "
                        f"only {', '.join(FILE_DTYPES)} can be read"
                    )


def read_tensor(
    path: Path, name: str, dtype: torch.dtype | None, device: torch.device | str = "cpu"
) -> Tensor:
    """One tensor of a file, cast to `dtype` if one is given.

    The file is opened anew for each: the pages that a cast has read are let go with it, which
    keeps the peak at the finished weights plus one tensor.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        return file.get_tensor(name).to(dtype)


def check_tied_head(
    model: Llama, path: Path, dtype: torch.dtype | None, device: torch.device | str
) -> None:
    """Makes sure that a head which is stored although it is tied is the embedding.

    Raises:
        ValueError: if it is another matrix.
    """
    head = read_tensor(path, "lm_head.weight", dtype, device)
    if not torch.equal(head, model.model.embed_tokens.weight):
        raise ValueError(
            f"{path}: lm_head.weight differs from model.embed_tokens.weight, but config.json "
            "says tie_word_embeddings; set it to false if the head is its own"
        )


def weights_sha256(folder: Path) -> str:
    """What tells these very weights from any others: sha256 over their files', in name order."""
    total = hashlib.sha256()
    for path in sorted(set(files_of_tensors(folder).values())):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few of many names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
