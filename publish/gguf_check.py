"""Reads a finished GGUF file back, and compares it with the model that it was made of.

What can be told in another way than it was written is told in another way: the format by a reader
of our own, the numbers by decoding them and putting their rows back into the Hub's order, the
tokens by the bytes that they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, TokenType
from gguf.quants import dequantize
from torch import Tensor

from data.tokenizer import Tokenizer
from data.vocabulary import bytes_of_byte_level, bytes_of_sentencepiece
from model.config import LlamaConfig
from model.rope import rotation_speeds
from publish.chat import Chat, read_chat
from publish.gguf_read import GGUFHeader, TensorPlace
from publish.gguf_tensors import (
    F16,
    F32,
    ROPE_FACTORS,
    blocks_of_rows,
    byte_shape,
    encoded,
    gguf_name,
    gguf_type,
    is_turned,
)
from publish.gguf_vocabulary import Vocabulary, read_vocabulary
from publish.merge import MergedWeights

# How far a number may lie from its rounded self, relative to it: half a step of the type.
HALF_STEP = {
    GGMLQuantizationType.F32: 0.0,
    GGMLQuantizationType.F16: 2.0**-11,
    GGMLQuantizationType.BF16: 2.0**-8,
}
HALF_SMALLEST_F16 = 2.0**-25


def check_gguf(
    weights: MergedWeights,
    model: Path,
    kind: str,
    file: Path,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Makes sure that a GGUF file holds this model, all of it and nothing else.

    Args:
        weights: the model that it was made of.
        model: the base model's folder.
        kind: a key of `KINDS`.
        file: what was written.
        progress: told how many more tensors were checked.

    Raises:
        ValueError: naming the first thing that is not as it has to be.
    """
    try:
        header = GGUFHeader(file)
        check_dimensions(header.settings, weights.config)
        tokenizer = Tokenizer.from_folder(model)
        check_vocabulary(
            header.settings, read_vocabulary(model, weights.config.vocab_size), tokenizer
        )
        check_conversation(header.settings, read_chat(model, tokenizer))
        check_places(header.tensors, weights, kind)
        for name in weights.shapes:
            check_tensor(file, header.tensors[gguf_name(name)], name, weights)
            progress(1)
        check_rope_factors(file, header, weights.config)
    except ValueError as error:
        raise ValueError(f"{file} is not what was to be written: {error}") from None


def check_settings(settings: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares the settings of these names; None stands for one that must not be there."""
    for key, value in expected.items():
        found = settings.get(key)
        is_same = (
            math.isclose(found, value, rel_tol=1e-7) if isinstance(found, float) else found == value
        )
        if not is_same:
            raise ValueError(f"{key} is {str(found)[:60]!r} instead of {str(value)[:60]!r}")


def check_dimensions(settings: Mapping[str, Any], config: LlamaConfig) -> None:
    """Compares what kind of Llama it is."""
    dimensions = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "rope.scaling.type": None,
        "vocab_size": config.vocab_size,
    }
    check_settings(settings, {"general.architecture": "llama"})
    check_settings(settings, {f"llama.{name}": value for name, value in dimensions.items()})


def check_vocabulary(
    settings: Mapping[str, Any], expected: Vocabulary, tokenizer: Tokenizer
) -> None:
    """Compares the tokens with the bytes that the tokenizer says they are, and the rest."""
    check_settings(
        settings,
        {
            "tokenizer.ggml.model": expected.kind,
            "tokenizer.ggml.pre": expected.pre_tokenizer,
            "tokenizer.ggml.token_type": [int(kind) for kind in expected.types],
            "tokenizer.ggml.merges": expected.merges or None,
            "tokenizer.ggml.scores": expected.scores or None,
            "tokenizer.ggml.add_space_prefix": expected.puts_space,
            "tokenizer.ggml.unknown_token_id": expected.unknown_id,
            "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
            "tokenizer.ggml.add_eos_token": False,
            "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        },
    )
    tokens, count = settings.get("tokenizer.ggml.tokens", []), len(expected.tokens)
    if len(tokens) != count or len(set(tokens)) != count:
        raise ValueError(f"it has {len(set(tokens)):,} different tokens, not {count:,}")
    is_byte_level = expected.kind == "gpt2"
    for token_id, (token, kind) in enumerate(zip(tokens, expected.types, strict=True)):
        if kind == TokenType.UNUSED:
            continue
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN):
            content = token.encode()
        else:
            content = bytes_of_byte_level(token) if is_byte_level else bytes_of_sentencepiece(token)
        if content != tokenizer.bytes_of(token_id):
            raise ValueError(f"token {token_id} is {token!r}, and stands for something else")


def check_conversation(settings: Mapping[str, Any], chat: Chat) -> None:
    """Compares the chat template and the tokens that end an answer."""
    check_settings(
        settings,
        {
            "tokenizer.chat_template": chat.template,
            "tokenizer.ggml.eos_token_id": chat.end_id,
            "tokenizer.ggml.eot_token_id": chat.end_id,
            "tokenizer.ggml.eom_token_id": next(iter(chat.other_end_ids), None),
            "tokenizer.ggml.padding_token_id": chat.pad_id,
        },
    )


def check_places(tensors: Mapping[str, TensorPlace], weights: MergedWeights, kind: str) -> None:
    """Compares names, shapes and types of all tensors."""
    expected = {
        gguf_name(name): (shape, gguf_type(shape, kind)) for name, shape in weights.shapes.items()
    }
    if weights.config.rope_scaling is not None:
        expected[ROPE_FACTORS] = ((weights.config.head_dim // 2,), F32)
    different = sorted(tensors.keys() ^ expected.keys())
    if different:
        raise ValueError(
            f"{different[0]} is {'left over' if different[0] in tensors else 'missing'}"
        )
    for name, (shape, wanted) in expected.items():
        place = tensors[name]
        if (place.shape, place.kind) != (shape, wanted):
            raise ValueError(f"{name} has shape {place.shape} and type {place.kind}")


def check_tensor(file: Path, place: TensorPlace, name: str, weights: MergedWeights) -> None:
    """Compares one tensor's bytes with what they have to be, and their meaning with the model's."""
    kind, head_dim = GGMLQuantizationType(place.kind), weights.config.head_dim
    exact = weights.tensor(name)
    for rows in blocks_of_rows(place.shape, head_dim):
        data = read_rows(file, place, rows)
        if not np.array_equal(data, encoded(name, exact[rows], kind, head_dim)):
            raise ValueError(f"{gguf_name(name)} has other bytes than were written")
        found = torch.from_numpy(dequantize(data, kind))
        if is_turned(name):  # row i of the second half, behind row i of the first: back again
            features = torch.arange(len(data)).view(-1, head_dim // 2, 2)
            found = found[features.transpose(1, 2).flatten()]
        if not ((found - exact[rows]).abs() <= rounding(exact[rows], kind)).all():
            raise ValueError(f"{gguf_name(name)} differs from the model by more than rounding")


def rounding(exact: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """How far numbers may lie from those that are stored for them.

    Q8_0 has a step for every 32 numbers, a 127th of the largest, and that is an F16.
    """
    if kind in HALF_STEP:
        return exact.abs() * HALF_STEP[kind] + (HALF_SMALLEST_F16 if kind == F16 else 0)
    step = exact.unflatten(-1, (-1, 32)).abs().amax(-1).repeat_interleave(32, -1) / 127
    return step * (0.5 + 127 * HALF_STEP[F16] + 1e-4) + 127 * HALF_SMALLEST_F16


def check_rope_factors(file: Path, header: GGUFHeader, config: LlamaConfig) -> None:
    """Compares the speeds at which llama.cpp turns queries and keys with ours."""
    if config.rope_scaling is None:
        return
    place = header.tensors[ROPE_FACTORS]
    factors = torch.from_numpy(read_rows(file, place, slice(0, place.shape[0])).view(np.float32))
    exponents = torch.arange(len(factors)) / len(factors)
    speeds = header.settings["llama.rope.freq_base"] ** -exponents / factors
    if not torch.allclose(speeds, rotation_speeds(config, torch.device("cpu")), rtol=1e-5, atol=0):
        raise ValueError(f"{ROPE_FACTORS} does not give the model's RoPE scaling")


def read_rows(file: Path, place: TensorPlace, rows: slice) -> np.ndarray:
    """The bytes of some of a tensor's rows, uint8. Raises ValueError if the file is too short."""
    kind = GGMLQuantizationType(place.kind)
    wanted = byte_shape((rows.stop - rows.start, *place.shape[1:]), kind)
    row_size = math.prod(byte_shape(place.shape, kind)) // place.shape[0]
    start = place.start + rows.start * row_size
    data = np.fromfile(file, np.uint8, math.prod(wanted), offset=start)
    if len(data) < math.prod(wanted):
        raise ValueError("it ends too early")
    return data.reshape(wanted)
