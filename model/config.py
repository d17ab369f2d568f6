"""What kind of Llama a checkpoint is: its `config.json`, read strictly.

The names are the file's own. A field that is known to change the forward pass in a way that is not
computed here is refused, by its name and value: no model is to be run as something it is not.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
ANOTHER = "download it again, or use another model"  # what helps against a wrong file
MOST_LAYERS = 1_000  # the deepest has 126; all are built before it is known which weights there are

# What a dense Llama has in these fields, where its file mentions them at all.
PLAIN = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch RoPE to long contexts (see `model/rope.py`).

    The two factors are in turns per `original_max_position_embeddings` tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture of one Llama checkpoint."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # K
    head_dim: int  # E
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_hidden_layers > MOST_LAYERS:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}; no Llama is so deep")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; RoPE turns features in pairs")

    @classmethod
    def from_folder(cls, folder: Path) -> LlamaConfig:
        """Reads `folder/config.json`.

        Raises:
            ValueError: if the file is missing, is not JSON, or describes another architecture.
        """
        path = folder / "config.json"
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {ANOTHER}") from None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LlamaConfig:
        """The same from the file's content. Absent fields have Hugging Face's defaults."""
        if raw.get("model_type") != "llama":
            raise ValueError(
                f"model_type is {raw.get('model_type')!r}; only 'llama' (LlamaForCausalLM: "
                "Llama 2 and 3, TinyLlama, SmolLM2) can be read"
            )
        for name, plain in PLAIN.items():
            if raw.get(name) not in (None, plain):
                raise ValueError(f"{name} is {raw[name]!r}; only {plain!r} can be computed")
        hidden_size = integer(raw, "hidden_size")
        heads = integer(raw, "num_attention_heads")
        if raw.get("head_dim") is None and hidden_size % heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
            )
        rope_theta, rope_scaling = read_rope(raw)
        return cls(
            vocab_size=integer(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=integer(raw, "intermediate_size"),
            num_hidden_layers=integer(raw, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=integer(raw, "num_key_value_heads", heads),
            head_dim=integer(raw, "head_dim", hidden_size // heads),
            max_position_embeddings=integer(raw, "max_position_embeddings", 2048),
            rms_norm_eps=number(raw, "rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_word_embeddings=boolean(raw, "tie_word_embeddings", False),
            dtype=read_dtype(raw),
        )


def read_rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """RoPE's base and its scaling, from either of the two spellings that are in use.

    Older files have `rope_theta` beside `rope_scaling`; newer ones have both in `rope_parameters`.
    Its kind is called `rope_type`, or `type` in the oldest.
    """
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(name) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{name} is {rope!r}, not an object")
    place = rope if "rope_theta" in rope else raw
    if "rope_theta" in place and place["rope_theta"] is None:
        raise ValueError("rope_theta is null, not a number")
    theta = number(place, "rope_theta", 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"{name}.rope_type is {kind!r}; only 'default' and 'llama3' are known")
    scaling = RopeScaling(
        factor=number(rope, "factor"),
        low_freq_factor=number(rope, "low_freq_factor"),
        high_freq_factor=number(rope, "high_freq_factor"),
        original_max_position_embeddings=integer(rope, "original_max_position_embeddings"),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ValueError(
            f"{name}: low_freq_factor {scaling.low_freq_factor} is not below "
            f"high_freq_factor {scaling.high_freq_factor}"
        )
    return theta, scaling


def read_dtype(raw: dict[str, Any]) -> str:
    """What the weights were trained in: `dtype`, called `torch_dtype` in older files."""
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; only {', '.join(DTYPES)} can be read")
    return dtype


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if it is missing, unreadable, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no such file in {path.parent}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"holds {type(value).__name__}, not an object")
    return value


def integer(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    """The positive whole number called `name`."""
    value = default if raw.get(name) is None else raw[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise ValueError(f"{name} is {value!r}, not a positive whole number below 2^31")
    return value


def number(raw: dict[str, Any], name: str, default: float | None = None) -> float:
    """The positive, finite number called `name`."""
    value = default if raw.get(name) is None else raw[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, not a number")
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}, not a positive number")
    return float(value)


def boolean(raw: dict[str, Any], name: str, default: bool) -> bool:
    """The truth value called `name`."""
    value = default if raw.get(name) is None else raw[name]
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, not true or false")
    return value


def token_ids(raw: dict[str, Any], name: str) -> tuple[int, ...]:
    """The token ids called `name`: files hold one, several in a list, or none."""
    value = raw.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"{name} is {value!r}, not a token id or a list of them")
    return tuple(ids)
