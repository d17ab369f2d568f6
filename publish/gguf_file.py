"""A merged model as one GGUF file, for llama.cpp and what is built on it.

The file, by ggml's docs/gguf.md:

    magic, version, how many tensors, how many settings
    settings   key, type, value: the dimensions, the vocabulary, the chat template
    tensors    name, shape, type, place of each
    numbers    one tensor after the other, each from a multiple of 32 bytes on

Tensors are computed, rounded and written one at a time, so that the memory it needs is about twice
the largest of them, whatever the size of the model.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter

from data.tokenizer import Tokenizer
from model.config import LlamaConfig
from publish.chat import Chat, read_chat
from publish.gguf_tensors import (
    F32,
    KINDS,
    ROPE_FACTORS,
    byte_shape,
    encoded,
    gguf_name,
    gguf_type,
    rope_factors,
)
from publish.gguf_vocabulary import Vocabulary, read_vocabulary
from publish.merge import MergedWeights


def write_gguf(
    weights: MergedWeights,
    model: Path,
    kind: str,
    file: Path,
    name: str = "",
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[str, ...]:
    """Writes a GGUF file; `check_gguf` makes sure that it is right.

    Args:
        weights: the merged model's.
        model: the base model's folder, for tokenizer and chat template.
        kind: a key of `KINDS`: how matrices are rounded.
        file: where to; whoever calls removes it if this fails.
        name: what programs show as the model's name.
        progress: told how many more tensors were written.

    Returns:
        What the user should know about the file, a line each; nothing, as a rule.

    Raises:
        ValueError: if llama.cpp could not run the model as it is meant, or if a weight is too large
            for the type.
        OSError: if the disk is full or cannot be written.
    """
    config = weights.config
    vocabulary = read_vocabulary(model, config.vocab_size)
    tokenizer = Tokenizer.from_folder(model)
    chat = read_chat(model, tokenizer)
    with open_writer(file) as writer:
        add_dimensions(writer, config)
        add_vocabulary(writer, vocabulary)
        add_conversation(writer, chat, tokenizer)
        writer.add_name(name)
        writer.add_file_type(KINDS[kind][1])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        write_tensors(writer, weights, kind, progress)
    return (*chat.notes, *space_notes(vocabulary, tokenizer))


@contextmanager
def open_writer(file: Path) -> Iterator[GGUFWriter]:
    """A writer whose errors name the file, and which is closed in the end."""
    writer = GGUFWriter(file, "llama")
    try:
        yield writer
        writer.close()
    except OSError as error:
        # NumPy says of a full disk only how many bytes it did not take.
        reason = error.strerror or os.strerror(errno.ENOSPC)
        raise OSError(f"{file} cannot be written: {reason}") from None
    finally:
        with suppress(OSError):
            writer.close()


def space_notes(vocabulary: Vocabulary, tokenizer: Tokenizer) -> tuple[str, ...]:
    """What to say where llama.cpp cannot be told how a tokenizer treats spaces."""
    if not vocabulary.puts_space or tokenizer.spaces_segments:
        return ()
    return (
        "this tokenizer puts a space only in front of a text, llama.cpp also after each control "
        "token: conversations have a space there that the model was not trained with",
    )


def add_dimensions(writer: GGUFWriter, config: LlamaConfig) -> None:
    """The settings that say what kind of Llama it is."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """The settings that say how a text becomes ids."""
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_token_scores(vocabulary.scores)
    writer.add_add_space_prefix(vocabulary.puts_space)
    if vocabulary.unknown_id is not None:
        writer.add_unk_token_id(vocabulary.unknown_id)


def add_conversation(writer: GGUFWriter, chat: Chat, tokenizer: Tokenizer) -> None:
    """The settings that say how a conversation is written, and where a text begins and ends."""
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    if chat.pad_id is not None:
        writer.add_pad_token_id(chat.pad_id)
    if chat.end_id is not None:
        writer.add_eos_token_id(chat.end_id)
        writer.add_eot_token_id(chat.end_id)
    if chat.other_end_ids:
        writer.add_eom_token_id(chat.other_end_ids[0])
    if chat.template is not None:
        writer.add_chat_template(chat.template)


def write_tensors(
    writer: GGUFWriter, weights: MergedWeights, kind: str, progress: Callable[[int], object]
) -> None:
    """Everything that follows the settings, and these before it."""
    for name, shape in weights.shapes.items():
        add_place(writer, gguf_name(name), shape, gguf_type(shape, kind))
    factors = rope_factors(weights.config)
    if factors is not None:
        add_place(writer, ROPE_FACTORS, tuple(factors.shape), F32)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in tensor_data(weights, kind):
        writer.write_tensor_data(data)
        del data
        progress(1)
    if factors is not None:
        writer.write_tensor_data(factors.numpy())


def add_place(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    """Keeps a place in the file for one tensor."""
    shape = byte_shape(shape, kind)
    size = int(np.prod(shape))
    writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=kind)


def tensor_data(weights: MergedWeights, kind: str) -> Iterator[np.ndarray]:
    """The bytes of one tensor after the other."""
    for name, shape in weights.shapes.items():
        exact = weights.tensor(name)
        data = encoded(name, exact, gguf_type(shape, kind), weights.config.head_dim)
        del exact  # before the next one is computed
        yield data
