"""Merged weights: what transformers and PEFT compute with them, and every bit of them.

About 15 seconds. PEFT applies the adapter next to the base, which it leaves as it is; transformers
loads what we merged. The bound is on the largest absolute difference over the largest logit;
measured: 6e-6, which is float32's own rounding in these models (against float64: 3e-6 and more).

Each of these bugs was put into the code once and seen to fail here:
merged in bfloat16; rounded to the base's dtype before the last rounding; the scale forgotten;
alpha instead of alpha / r; rsLoRA not asked for; copied tensors rounded through bfloat16; the tied
head written, too, or written where the base's file has it; a stored head not looked at; values
beyond float16 written as infinite; the adapter's part measured by A alone; the rounding measured of
one piece of each matrix.
"""

from __future__ import annotations

import re
import socket
import warnings
from pathlib import Path

import pytest
import torch
from adapters import relative_error
from exports import (
    ALL,
    DTYPES,
    LARGE,
    VOCAB_SIZE,
    Pair,
    as_dtype,
    exact_updates,
    make_pair,
    read_all,
    same_bits,
    stored_twice,
)
from model_folders import sharded, single
from torch import Tensor, nn

import publish.model_folder
from lora.config import ATTENTION, LoRAConfig
from model.attention import Packed
from publish.merge import MergedWeights
from publish.model_folder import write_weights
from publish.source import open_source

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # theirs, about themselves
BOUND = 1e-5
ADAPTERS = {
    "attention": LoRAConfig(4, 6.0, targets=ATTENTION),
    "attention-rslora": LoRAConfig(4, 6.0, targets=ATTENTION, use_rslora=True),
    "all": ALL,
    "all-rslora": LoRAConfig(5, 3.0, targets=ALL.targets, use_rslora=True),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing here may ask the network."""

    def connect(*arguments):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


def load_theirs(folder: Path) -> nn.Module:
    """What transformers makes of a folder; a warning, or a tensor too many or too few, is an error.

    No dtype is given: it has to be the one that config.json names.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)  # about itself
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True
        )
    assert not any(loading.values()), loading
    return model.eval()


def tokens() -> Tensor:
    """Every id there is, once."""
    return torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def their_logits(model: nn.Module) -> Tensor:
    return model(input_ids=tokens()[None]).logits[0]


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("write", [single, sharded])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_computes_with_it_what_peft_does_with_the_adapter(tmp_path, tied, write, name):
    pair = make_pair(tmp_path, ADAPTERS[name], write=write, tie_word_embeddings=tied)
    pair.merge(tmp_path / "merged", "fp32")
    got = their_logits(load_theirs(tmp_path / "merged"))
    base = load_theirs(pair.base)
    plain = their_logits(base)
    wanted = their_logits(peft.PeftModel.from_pretrained(base, pair.adapter).eval())
    assert relative_error(got, wanted) <= BOUND
    with torch.no_grad():
        assert relative_error(got, pair.model(tokens(), Packed([VOCAB_SIZE]))) <= BOUND
    assert relative_error(plain, wanted) > 0.1  # or the adapter would not matter


@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
def test_merged_weights_are_the_papers_formula(tmp_path, stored):
    """In float32 whatever the base is stored in, to the last digits of float32."""
    pair = make_pair(tmp_path, change=as_dtype(stored))
    pair.merge(tmp_path / "merged", "fp32")
    got, base = read_all(tmp_path / "merged"), read_all(pair.base)
    updates = exact_updates(pair, ALL)
    for name, update in updates.items():
        wanted = base[name].double() + update
        assert (got[name].double() - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert len(updates) == 2 * 7


@pytest.mark.parametrize("std", [0.15, 0.02])
@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_is_the_float32_merge_rounded_once(tmp_path, name, stored, std):
    pair = make_pair(tmp_path, std=std, change=as_dtype(stored))
    pair.merge(tmp_path / "exact", "fp32")
    pair.merge(tmp_path / "rounded", name)
    wanted = {n: t.to(DTYPES[name]) for n, t in read_all(tmp_path / "exact").items()}
    assert same_bits(read_all(tmp_path / "rounded"), wanted)


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("name", DTYPES)
def test_the_printed_loss_is_that_of_an_independent_computation(
    tmp_path, monkeypatch, name, config
):
    """In float64, from the files and with B A written out."""
    monkeypatch.setattr(publish.model_folder, "PIECE", 7)
    pair = make_pair(tmp_path, config, std=0.02)
    text = pair.merge(tmp_path / "rounded", name)
    pair.merge(tmp_path / "exact", "fp32")
    exact, rounded = read_all(tmp_path / "exact"), read_all(tmp_path / "rounded")
    lost = whole = 0.0
    for adapted, update in exact_updates(pair, config).items():
        lost += (rounded[adapted].double() - exact[adapted].double()).square().sum().item()
        whole += update.square().sum().item()
    wanted = (lost / whole) ** 0.5
    source = open_source(str(pair.adapter), str(pair.base))
    (tmp_path / "again").mkdir()
    share = write_weights(
        MergedWeights(source), DTYPES[name], LARGE, tmp_path / "again", lambda count: None
    )
    assert share == pytest.approx(wanted, rel=1e-4)
    assert (share > 0.001) == (name != "fp32")
    assert f"rounding changed the adapter's part by {share:.2%}" in text
    assert ("--dtype fp32" in text) == (name != "fp32")


BASES = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "tied, stored twice": {"change": stored_twice},
    "tied, in shards": {"write": sharded},
    "tied, stored twice, in shards": {"write": sharded, "change": stored_twice},
    "untied, in shards": {"write": sharded, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("name", BASES)
def test_it_has_the_bases_tensors_and_one_head(tmp_path, name):
    """A tied head is stored once, as the embedding, however the base has it."""
    pair = make_pair(tmp_path, **BASES[name])
    text = pair.merge(tmp_path / "merged")
    got, base = read_all(tmp_path / "merged"), read_all(pair.base)
    if "untied" not in name:
        base.pop("lm_head.weight", None)
    assert ("lm_head.weight" in got) == ("untied" in name)
    changed = exact_updates(pair, ALL).keys()
    assert same_bits(drop(got, changed), drop(base, changed))
    assert got.keys() == base.keys()
    assert all(got[n].shape == base[n].shape and not torch.equal(got[n], base[n]) for n in changed)
    assert f"with {len(changed)} matrices changed" in text
    load_theirs(tmp_path / "merged")


def drop(tensors: dict[str, Tensor], names) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_a_layer_that_the_adapter_leaves_alone_is_not_touched(tmp_path):
    pair = make_pair(tmp_path, LoRAConfig(4, 6.0, targets=("v_proj",)))
    pair.merge(tmp_path / "merged")
    got, base = read_all(tmp_path / "merged"), read_all(pair.base)
    changed = {name for name in base if not torch.equal(got[name], base[name])}
    assert changed == {f"model.layers.{layer}.self_attn.v_proj.weight" for layer in range(2)}


def test_a_stored_head_that_is_not_the_embedding_is_refused(tmp_path):
    """As when it is loaded: one of two matrices would be dropped without a word."""

    def change(tensors: dict[str, Tensor]) -> None:
        stored_twice(tensors)
        tensors["lm_head.weight"][3, 5] += 1

    pair = make_pair(tmp_path, change=change)
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        pair.merge(tmp_path / "merged")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_values_beyond_float16_are_refused_before_they_become_infinite(tmp_path, name):
    """In a tensor that is only copied, and in one that is merged."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][3, 5] = 1e5

    pair = make_pair(tmp_path, change=change)
    with pytest.raises(ValueError) as caught:
        pair.merge(tmp_path / "merged", "fp16")
    assert re.match(f"{name} has values .* float16; choose another --dtype", str(caught.value))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
    pair.merge(tmp_path / "merged", "bf16")


@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("said", ["float32", "bfloat16", "float16"])
def test_auto_is_the_dtype_that_the_bases_config_names(tmp_path, said, stored):
    """Which is not always that of its file; transformers, too, goes by config.json."""
    pair = make_pair(tmp_path, change=as_dtype(stored), dtype=said)
    pair.merge(tmp_path / "merged")
    got, dtype = read_all(tmp_path / "merged"), getattr(torch, said)
    assert {tensor.dtype for tensor in got.values()} == {dtype}
    changed = exact_updates(pair, ALL).keys()
    wanted = {name: tensor.to(dtype) for name, tensor in read_all(pair.base).items()}
    assert same_bits(drop(got, changed), drop(wanted, changed))
    merged = tmp_path / "merged" / "config.json"
    assert merged.read_bytes() == (pair.base / "config.json").read_bytes()
    assert load_theirs(tmp_path / "merged").dtype == dtype
