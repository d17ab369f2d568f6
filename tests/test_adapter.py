"""Adapter files: what is written is what is read, and nothing that does not fit gets into a model.

`tests/test_lora_matches_peft.py` has the exchange with PEFT. Each of these bugs was put into the
code once and seen to fail here: unknown fields ignored; missing tensors ignored; left over tensors
ignored; shapes not compared; values that are not finite taken; the model changed before the check;
base_sha256 not written; a run's folder not searched.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapted_llama, logits, state
from conftest import tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora.adapter import WEIGHTS_FILE, load_adapter, save_adapter
from lora.choose_adapter import find_adapter
from lora.config import ATTENTION, CONFIG_FILE, MLP, BaseModel, LoRAConfig
from lora.inject import lora_layers

BASE = BaseModel("some/llama", "0123abc", "ab" * 32)
CONFIG = LoRAConfig(4, 6.0, targets=("q_proj", "v_proj"))
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = A0.replace("lora_A", "lora_B")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good adapter, to be damaged."""
    save_adapter(adapted_llama(CONFIG), CONFIG, BASE, tmp_path / "adapter")
    return tmp_path / "adapter"


def change_config(folder: Path, change: Callable[[dict], Any]) -> None:
    raw = json.loads((folder / CONFIG_FILE).read_text())
    change(raw)
    (folder / CONFIG_FILE).write_text(json.dumps(raw))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})


def refusal(folder: Path, model: nn.Module | None = None) -> str:
    """What loading says, in one line with the path; the model has to be as it was."""
    model = model or tiny_llama()
    before = state(model)
    with pytest.raises(ValueError) as caught:
        load_adapter(model, folder)
    assert state(model) == before
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("targets", [ATTENTION, ATTENTION + MLP, ("up_proj",)])
def test_what_was_saved_is_what_is_loaded(targets, use_rslora, device, tmp_path):
    config = LoRAConfig(4, 6.5, 0.1, targets, use_rslora)
    saved = adapted_llama(config).to(device)
    save_adapter(saved, config, BASE, tmp_path / "deep" / "adapter")
    model = tiny_llama().to(device)
    assert load_adapter(model, tmp_path / "deep" / "adapter") == BASE
    assert torch.equal(logits(model), logits(saved))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{m}.weight" for name in lora_layers(model) for m in "AB"}


def test_an_adapter_without_a_known_base_can_be_saved(tmp_path):
    save_adapter(adapted_llama(CONFIG), CONFIG, BaseModel(), tmp_path)
    assert load_adapter(tiny_llama(), tmp_path) == BaseModel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_adapter_stored_in_another_precision_becomes_float32(dtype, folder):
    change_tensors(folder, lambda t: t.update({name: x.to(dtype) for name, x in t.items()}))
    model = tiny_llama()
    load_adapter(model, folder)
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        own = model.get_parameter(name.removeprefix("base_model.model."))
        assert own.dtype == torch.float32 and torch.equal(own, tensor.float())


def test_an_adapter_for_a_model_that_has_one_is_refused(folder):
    model = adapted_llama(LoRAConfig(2, 1.0, targets=("k_proj",)))
    assert "LoRA layers already" in refusal(folder, model)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_refused_by_name(file, folder):
    (folder / file).unlink()
    assert file in refusal(folder)
    (folder / file).mkdir()
    assert file in refusal(folder)


def test_an_adapter_in_a_bin_file_is_refused(folder):
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    assert "(.bin) are not read" in refusal(folder)


@pytest.mark.parametrize("field", ["peft_type", "r", "lora_alpha", "target_modules"])
def test_a_missing_field_is_refused_by_name(field, folder):
    change_config(folder, lambda raw: raw.pop(field))
    assert f"lacks {field}" in refusal(folder)


@pytest.mark.parametrize(
    "field, value",
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("use_dora", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("modules_to_save", ["lm_head"]),
        ("target_modules", ".*_proj"),
        ("target_modules", ["model.layers.0.self_attn.q_proj"]),
        ("target_modules", ["q_proj", 3]),
        ("target_modules", [".*"]),
        ("target_modules", None),
        ("target_modules", []),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", [1]),
        ("some_field_of_the_future", "on"),
        ("use_rslora", "yes"),
        ("r", "4"),
        ("r", 4.0),
        ("r", True),
        ("r", 0),
        ("r", -1),
        ("r", 2**60),
        ("lora_alpha", "16"),
        ("lora_alpha", 0),
        ("lora_alpha", -2.0),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 10**400),
        ("base_model_name_or_path", 7),
        ("revision", ["main"]),
    ],
)
def test_a_setting_that_is_not_understood_is_refused(field, value, folder):
    change_config(folder, lambda raw: raw.update({field: value}))
    message = refusal(folder)
    if field not in ("r", "lora_alpha") and value != []:
        assert field in message and repr(value) in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"7"])
def test_settings_that_are_no_json_object_are_refused(content, folder):
    (folder / CONFIG_FILE).write_bytes(content)
    assert CONFIG_FILE in refusal(folder)


def test_targets_that_the_model_lacks_are_refused_with_those_that_it_has(folder):
    change_config(folder, lambda raw: raw.update(target_modules=["c_attn"]))
    message = refusal(folder)
    assert "['c_attn']" in message and "q_proj" in message


def test_a_target_that_shares_its_weight_is_refused(folder):
    change_config(folder, lambda raw: raw.update(target_modules=["lm_head"]))
    assert "lm_head shares its weight" in refusal(folder)


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


WRONG_NAMES = {
    "without the prefix": renamed("base_model.model.", ""),
    "another prefix": renamed("base_model.model.", "model."),
    "the adapter's name": renamed("lora_A.weight", "lora_A.default.weight"),
    "lower case": renamed("lora_A", "lora_a"),
    "a layer less": renamed("layers.0.", "layers.3."),
    "a matrix less": lambda tensors: tensors.pop(B0),
    "a layer more": lambda t: t.update({A0.replace("layers.0", "layers.3"): torch.zeros(4, 48)}),
    "another target": lambda t: t.update({A0.replace("q_proj", "k_proj"): torch.zeros(4, 48)}),
    "a bias": lambda t: t.update({B0.replace("weight", "bias"): torch.zeros(60)}),
    "nothing": dict.clear,
}


@pytest.mark.parametrize("change", WRONG_NAMES)
def test_tensors_that_are_not_exactly_the_models_are_refused(change, folder):
    change_tensors(folder, WRONG_NAMES[change])
    assert "belongs to some/llama" in refusal(folder)


@pytest.mark.parametrize(
    "name, wrong",
    [
        (A0, torch.zeros(4, 47)),
        (A0, torch.zeros(3, 48)),
        (A0, torch.zeros(48, 4)),
        (A0, torch.zeros(1, 48)),
        (A0, torch.zeros(())),
        (B0, torch.zeros(4, 60)),
        (B0, torch.zeros(60, 1)),
        (B0, torch.zeros(60, 4, 1)),
    ],
)
def test_a_tensor_of_another_shape_is_refused_with_both_shapes(name, wrong, folder):
    change_tensors(folder, lambda tensors: tensors.update({name: wrong}))
    message = refusal(folder)
    assert name in message and str(list(wrong.shape)) in message
    assert str([4, 48] if name == A0 else [60, 4]) in message


def test_an_adapter_of_another_rank_than_its_settings_say_is_refused(folder):
    change_config(folder, lambda raw: raw.update(r=8))
    assert "[4, 48]" in refusal(folder)


def test_an_adapter_of_a_larger_model_is_refused(folder):
    refusal(folder, tiny_llama(hidden_size=96))
    refusal(folder, tiny_llama(num_hidden_layers=4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [A0, B0])
def test_values_that_are_not_finite_are_refused(name, value, folder):
    change_tensors(folder, lambda tensors: tensors[name].__setitem__((2, 1), value))
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((4, 48), 1e300, dtype=torch.float64),
        torch.ones(4, 48, dtype=torch.int32),
        torch.ones(4, 48, dtype=torch.complex64),
    ],
    ids=["beyond float32", "whole numbers", "complex"],
)
def test_values_that_are_no_float32_numbers_are_refused(tensor, folder):
    change_tensors(folder, lambda tensors: tensors.update({A0: tensor}))
    assert A0 in refusal(folder)


def test_a_damaged_weights_file_is_refused(folder):
    whole = (folder / WEIGHTS_FILE).read_bytes()
    for cut in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS_FILE).write_bytes(whole[:cut])
        assert "not a whole safetensors file" in refusal(folder)
    for content in (struct.pack("<Q", 2**63) + whole[8:], b"\x80\x02}q\x00.", bytes(999)):
        (folder / WEIGHTS_FILE).write_bytes(content)
        assert WEIGHTS_FILE in refusal(folder)


def test_an_adapter_is_found_in_its_own_folder_and_in_that_of_its_run(folder):
    assert find_adapter(folder) == folder
    assert find_adapter(folder.parent) == folder
    (folder.parent / "config.json").write_text("{}")
    assert find_adapter(folder.parent) == folder


def test_where_there_is_no_adapter_it_says_so(tmp_path):
    for path, message in [(tmp_path, "is no adapter"), (tmp_path / "runs", "no such adapter")]:
        with pytest.raises(ValueError, match=message) as caught:
            find_adapter(path)
        assert str(path) in str(caught.value)
