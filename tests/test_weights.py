"""Loading weights: every parameter exactly once, cast as asked, and nothing else.

Each of these bugs was put into the code once and seen to fail here: missing parameters tolerated;
unknown tensors tolerated; shapes not compared (the tensor then replaces the parameter as it is);
dtypes not compared; a stored tied head not compared; a tied head left on the meta device; any name
with inv_freq in it ignored; the dtype of config.json ignored; only the first file hashed; the model
left in training mode. `tests/test_weights_damage.py` has damaged and hostile files,
`tests/test_weights_memory.py` the memory.
"""

from __future__ import annotations

import pytest
import torch
from conftest import random_tokens, tiny_llama
from model_folders import refusal, sharded, single, tensors_of

from model.attention import Packed
from model.weights import files_of_tensors, load_model, weights_sha256

# One of each class of tensor.
CLASSES = [
    "model.embed_tokens.weight",
    "model.layers.1.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.2.self_attn.o_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", [single, sharded])
def test_every_parameter_is_the_files_and_the_model_computes_with_them(
    layout, tied, device, tmp_path
):
    tensors = tensors_of(tie_word_embeddings=tied)
    model = load_model(layout(tmp_path, tensors, tie_word_embeddings=tied), device=device)
    assert not model.training
    loaded = dict(model.named_parameters())
    assert loaded.keys() == tensors.keys()
    for name, parameter in loaded.items():
        assert parameter.device.type == device.type
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.cpu(), tensors[name])
    assert all(t.device.type == device.type for t in model.state_dict().values())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    tokens = random_tokens(20)
    wanted = tiny_llama(tie_word_embeddings=tied).to(device)(tokens.to(device), Packed([20]))
    assert torch.equal(model(tokens.to(device), Packed([20])), wanted)


def test_the_real_checkpoint_is_read_as_transformers_reads_it(assets):
    transformers = pytest.importorskip("transformers")
    folder = assets / "stories260k"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    ours = load_model(folder).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", [single, sharded])
@pytest.mark.parametrize("change", ["drop", "add", "rename", "reshape", "transpose", "retype"])
@pytest.mark.parametrize("name", CLASSES)
def test_tensors_that_are_not_exactly_the_models_are_refused_by_name(
    name, change, layout, tmp_path
):
    tensors = tensors_of(tie_word_embeddings=False)
    right = tensors.pop(name)
    wrong_tensors = {
        "drop": {},
        "add": {name: right, name.replace("weight", "bias"): right.clone()},
        "rename": {name.replace("weight", "bias"): right},
        "reshape": {name: right[:-1].clone()},
        "transpose": {name: right[None] if right.dim() == 1 else right.t().contiguous()},
        "retype": {name: right.double()},
    }[change]
    message = refusal(layout(tmp_path, tensors | wrong_tensors, tie_word_embeddings=False))
    assert (name.replace("weight", "bias") if change == "add" else name) in message
    if change in ("reshape", "transpose"):
        assert str(list(right.shape)) in message
        assert str(list(wrong_tensors[name].shape)) in message
    if change == "retype":
        assert "F64" in message


def test_many_missing_tensors_are_counted_rather_than_listed(tmp_path):
    message = refusal(single(tmp_path, {"model.norm.weight": torch.ones(48)}))
    assert "and 24 more" in message and len(message) < 400


def test_a_tied_head_may_be_stored_too_if_it_is_the_embedding(tmp_path):
    tensors = tensors_of()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    model = load_model(single(tmp_path, tensors))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tensors["lm_head.weight"][3, 5] += 1e-3
    assert "tie_word_embeddings" in refusal(single(tmp_path, tensors))


def test_the_rope_speeds_in_early_files_are_ignored_and_nothing_that_looks_alike(tmp_path):
    tensors = tensors_of()
    derived = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(5) for i in range(3)}
    load_model(single(tmp_path, tensors | derived))
    for name in ("evil.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq.x"):
        assert name in refusal(single(tmp_path, tensors | {name: torch.ones(5)}))


@pytest.mark.parametrize("asked", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("named", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_cast_to_what_is_asked_or_else_to_what_config_json_names(
    stored, named, asked, device, tmp_path
):
    tensors = {name: t.to(stored) for name, t in tensors_of().items()}
    folder = single(tmp_path, tensors, torch_dtype=named)
    dtype = asked or getattr(torch, named)
    for name, parameter in load_model(folder, asked, device).named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter.cpu(), tensors[name].to(dtype))


@pytest.mark.parametrize("layout", [single, sharded])
def test_the_hash_is_that_of_the_bytes(layout, tmp_path):
    """Seen to fail when only the first shard was hashed."""
    tensors = tensors_of()
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
        layout(folder, tensors)
    assert weights_sha256(folders[0]) == weights_sha256(folders[1])
    files = sorted(set(files_of_tensors(folders[2]).values()))
    for path in (files[0], files[-1]):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert weights_sha256(folders[2]) != weights_sha256(folders[0])
        path.write_bytes(whole)
    assert weights_sha256(folders[2]) == weights_sha256(folders[0])
