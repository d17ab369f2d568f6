"""Reading config.json: every dense Llama as transformers reads it, anything else refused by name.

Each of these bugs was put into the code once and seen to fail here: factor taken to be 8; RoPE's
`type` not read as `rope_type`; head_dim always derived; rope_theta fixed at 10,000; key heads
defaulting to 1; quantization_config let through; bool taken for a number; overflow not caught;
`rope_parameters` preferred over `rope_scaling`, where transformers does the opposite.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import llama3_rope, tiny_config

from model.config import LlamaConfig, RopeScaling


def scaling(factor: float) -> dict[str, Any]:
    """The older spelling, without `rope_theta`."""
    return {name: v for name, v in llama3_rope(factor).items() if name != "rope_theta"}


def hub(hidden_size: int, intermediate_size: int, layers: int, heads: int, key_heads: int, **more):
    """A config.json as the Hub has them, in the older spelling."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 131072,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": key_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    } | more


NO_BIAS = {"attention_bias": False, "attention_dropout": 0.0}
SMALL_VOCABULARY = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 32000}
LLAMA_3_2_3B = hub(
    *(3072, 8192, 28, 24, 8),
    **NO_BIAS,
    mlp_bias=False,
    eos_token_id=[128001, 128008, 128009],
    head_dim=128,
    rope_scaling=scaling(32.0),
    rope_theta=500000.0,
    tie_word_embeddings=True,
)
LLAMA_3_1_8B = hub(
    *(4096, 14336, 32, 32, 8),
    **NO_BIAS,
    mlp_bias=False,
    rope_scaling=scaling(8.0),
    rope_theta=500000.0,
)
LLAMA_3_8B = hub(
    *(4096, 14336, 32, 32, 8), **NO_BIAS, max_position_embeddings=8192, rope_theta=500000.0
)
LLAMA_2_7B = hub(
    *(4096, 11008, 32, 32, 32),
    **SMALL_VOCABULARY,
    max_position_embeddings=4096,
    torch_dtype="float16",
)
TINY_LLAMA = hub(
    *(2048, 5632, 22, 32, 4),
    **SMALL_VOCABULARY,
    attention_bias=False,
    max_position_embeddings=2048,
    rope_theta=10000.0,
)
LEAST = {
    "model_type": "llama",
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}
CONFIGS = {
    "Llama-3.2-3B-Instruct": LLAMA_3_2_3B,
    "Llama-3.1-8B": LLAMA_3_1_8B,
    "Meta-Llama-3-8B": LLAMA_3_8B,
    "Llama-2-7b-hf": LLAMA_2_7B,
    "TinyLlama-1.1B-Chat-v1.0": TINY_LLAMA,
    "newer spelling": tiny_config(dtype="bfloat16"),
    "newer spelling, plain": tiny_config(
        rope_parameters={"rope_type": "default", "rope_theta": 77_000.0}
    ),
    "only what must be there": LEAST,
}


def assert_read_as_by_transformers(ours: LlamaConfig, raw: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaConfig(**raw)
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    if rope["rope_type"] == "default":
        assert ours.rope_scaling is None
    else:
        assert rope["rope_type"] == "llama3"
        fields = RopeScaling.__annotations__
        assert vars(ours.rope_scaling) == {name: rope[name] for name in fields}
    if raw.get("dtype") or raw.get("torch_dtype"):
        assert f"torch.{ours.dtype}" == str(theirs.dtype)


def in_folder(folder: Path, raw: Any) -> Path:
    text = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    (folder / "config.json").write_bytes(text)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'config.json'}: ")
    return message.removeprefix(f"{folder / 'config.json'}: ")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_llamas_of_the_hub_are_read_as_transformers_reads_them(name, tmp_path):
    config = LlamaConfig.from_folder(in_folder(tmp_path, CONFIGS[name]))
    assert_read_as_by_transformers(config, CONFIGS[name])


@pytest.mark.parametrize("name", ["llama-3.2-1b", "smollm2-135m-instruct", "stories260k"])
def test_the_files_themselves_are_read_as_transformers_reads_them(name, assets):
    raw = json.loads((assets / name / "config.json").read_text())
    assert_read_as_by_transformers(LlamaConfig.from_folder(assets / name), raw)


def test_llama_3_2_is_scaled_by_32_and_3_1_by_8():
    assert LlamaConfig.from_dict(LLAMA_3_2_3B).rope_scaling.factor == 32
    assert LlamaConfig.from_dict(LLAMA_3_1_8B).rope_scaling.factor == 8


@pytest.mark.parametrize("field", ["factor", "low_freq_factor", "high_freq_factor"])
def test_every_field_of_the_scaling_is_read(field):
    changed = LlamaConfig.from_dict(hub_3b(**{field: 3.5})).rope_scaling
    usual = LlamaConfig.from_dict(hub_3b()).rope_scaling
    assert vars(changed) == vars(usual) | {field: 3.5}


def hub_3b(**rope: Any) -> dict[str, Any]:
    raw = LLAMA_3_2_3B
    return raw | {"rope_scaling": raw["rope_scaling"] | rope}


@pytest.mark.parametrize("kind", ["rope_type", "type"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_both_spellings_of_both_names_mean_the_same(kind, place):
    rope = llama3_rope(32.0)
    rope[kind] = rope.pop("rope_type")
    raw = tiny_config(rope_parameters=None) | {place: rope}
    config = LlamaConfig.from_dict(raw)
    assert config == LlamaConfig.from_dict(tiny_config())
    assert_read_as_by_transformers(config, raw)


def test_where_both_names_stand_the_older_one_counts_as_in_transformers():
    raw = tiny_config(rope_scaling=scaling(8.0), rope_theta=33_000.0)
    assert_read_as_by_transformers(LlamaConfig.from_dict(raw), raw)


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "mistral"),
        ("model_type", None),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("attention_dropout", 0.1),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("num_key_value_heads", 4),
        ("num_attention_heads", 5),
        ("num_attention_heads", 10),
        ("head_dim", 15),
        ("hidden_size", "48"),
        ("hidden_size", 48.0),
        ("hidden_size", True),
        ("vocab_size", 0),
        ("vocab_size", 2**31),
        ("hidden_size", 10**50),
        ("num_hidden_layers", -3),
        ("intermediate_size", math.nan),
        ("max_position_embeddings", [131072]),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", -1e-5),
        ("rms_norm_eps", math.nan),
        ("rms_norm_eps", math.inf),
        ("rms_norm_eps", 10**400),
        ("rms_norm_eps", True),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 1),
        ("torch_dtype", "float8_e4m3fn"),
        ("rope_scaling", "llama3"),
        ("rope_scaling", [8.0]),
    ],
)
def test_what_cannot_be_computed_is_refused_with_the_field_and_its_value(field, value, tmp_path):
    raw = tiny_config(head_dim=None) | {field: value}
    message = refusal(in_folder(tmp_path, raw))
    assert field.removeprefix("torch_") in message and repr(value).strip("'") in message


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope", 3, None])
def test_other_kinds_of_rope_scaling_are_refused(kind):
    for name in ("rope_type", "type"):
        raw = tiny_config(rope_parameters=None, rope_scaling={name: kind, "factor": 4.0})
        with pytest.raises(ValueError, match=f"rope_scaling.rope_type is {kind!r}"):
            LlamaConfig.from_dict(raw)


@pytest.mark.parametrize("value", ["absent", "32", math.nan, 0, -1.0, True])
@pytest.mark.parametrize("field", RopeScaling.__annotations__)
def test_a_scaling_without_one_of_its_numbers_is_refused(field, value):
    raw = hub_3b(**{field: value})
    if value == "absent":
        del raw["rope_scaling"][field]
    with pytest.raises(ValueError, match=field):
        LlamaConfig.from_dict(raw)


def test_a_scaling_whose_bands_are_in_the_wrong_order_is_refused():
    for low in (4.0, 5.0):
        with pytest.raises(ValueError, match=f"low_freq_factor {low} is not below"):
            LlamaConfig.from_dict(hub_3b(low_freq_factor=low))


@pytest.mark.parametrize("field", LEAST)
def test_a_field_that_must_be_there_is_missed_by_name(field, tmp_path):
    raw = {name: v for name, v in LEAST.items() if name != field}
    assert f"{field} is None" in refusal(in_folder(tmp_path, raw))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"null",
        b'"llama"',
        json.dumps(tiny_config()).encode()[:-40],
        b"\x80\x02}q\x00.",
        bytes(range(256)) * 9,
        b"[" * 100_000,
        b'{"model_type": ' + b"[" * 960 + b"]" * 960 + b"}",
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
    ],
    ids="empty cut list null string cut2 pickle binary deep nested digits".split(),
)
def test_a_file_that_is_no_json_object_is_refused(content, tmp_path):
    refusal(in_folder(tmp_path, content))


def test_a_missing_file_or_folder_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "nowhere")
    (tmp_path / "config.json").mkdir()
    refusal(tmp_path)
