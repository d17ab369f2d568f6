"""The LoRA layer and putting it into a model: what its equation and its promises say.

Each of these bugs was put into the code once and seen to fail here: scale alpha instead of alpha/r;
B started at random; A started with Kaiming's a = 0; A and B kept in the base's dtype; dropout on
the frozen path too; dropout also in evaluation; a new layer in training mode within a model in
evaluation, merged or not; the model left unfrozen; a tied head adapted; the switch not restored
after an exception, or set to on; the merge computed in bfloat16; the merge written into the base.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from adapters import adapted_llama, logits, relative_error, state
from conftest import random_tokens, tiny_llama
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lora.answering import FEW_ROWS, FewRowsFactor, arrange_lora_for_answers
from lora.config import ATTENTION, MLP, LoRAConfig
from lora.inject import add_lora, lora_disabled, lora_layers, merge_lora, remove_lora
from lora.layer import LoRALinear
from model.attention import Packed

ALL = ATTENTION + MLP
CONFIG = LoRAConfig(rank=4, alpha=6.0, targets=ALL)


def random_layer(dropout: float = 0.0, bias: bool = False, use_rslora: bool = False) -> LoRALinear:
    """A layer from 12 to 7 features of rank 4, with an update as large as its weight."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(12, 7, bias=bias), 4, 6.0, dropout, use_rslora)
    nn.init.normal_(layer.lora_B.weight, std=0.5)
    return layer


@pytest.mark.parametrize("use_rslora, scale", [(False, 6 / 4), (True, 6 / 2)])
def test_the_layer_computes_its_equation(use_rslora, scale):
    layer = random_layer(bias=True, use_rslora=use_rslora)
    layer.base.double()
    x = torch.randn(5, 12, dtype=torch.float64)
    W, A, B = (m.weight.double() for m in (layer.base, layer.lora_A, layer.lora_B))
    wanted = x @ (W + scale * B @ A).T + layer.base.bias
    assert relative_error(layer(x), wanted) <= 1e-14


@pytest.mark.parametrize("targets", [ATTENTION, ALL, ("down_proj",)])
def test_a_new_adapter_changes_nothing_at_all(targets, device):
    model = tiny_llama().to(device)
    before = logits(model)
    add_lora(model, LoRAConfig(rank=4, dropout=0.5, targets=targets))
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(model.train()), before)


def test_a_starts_uniform_within_one_over_the_root_of_its_inputs_and_b_at_zero():
    torch.manual_seed(0)
    first, second = (LoRALinear(nn.Linear(400, 30), 64, 1.0) for _ in range(2))
    A, bound = first.lora_A.weight, 1 / math.sqrt(400)
    assert A.abs().max() <= bound
    assert A.max() > 0.99 * bound and A.min() < -0.99 * bound
    assert abs(A.std().item() - bound / math.sqrt(3)) < 0.02 * bound
    assert abs(A.mean().item()) < 0.02 * bound
    assert not torch.equal(A, second.lora_A.weight)
    assert (first.lora_B.weight == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_and_b_are_float32_whatever_the_frozen_layer_is(dtype, device):
    base = nn.Linear(12, 7, bias=False, dtype=dtype, device=device)
    layer = LoRALinear(base, 4, 8.0)
    assert layer.lora_A.weight.dtype == layer.lora_B.weight.dtype == torch.float32
    assert layer.lora_A.weight.device == layer.lora_B.weight.device == base.weight.device
    nn.init.ones_(layer.lora_B.weight)
    out = layer(torch.randn(5, 12, dtype=dtype, device=device))
    assert out.dtype == dtype
    out.float().sum().backward()
    assert layer.lora_A.weight.grad.dtype == torch.float32
    assert layer.lora_A.weight.grad.abs().max() > 0


def test_dropout_thins_the_input_of_the_update_only_and_only_in_training():
    layer = random_layer(dropout=0.4)
    x = torch.randn(500, 12)
    torch.manual_seed(3)
    got = layer(x)
    torch.manual_seed(3)
    update = F.dropout(x, 0.4) @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    assert relative_error(got, layer.base(x) + layer.scale * update) <= 1e-6
    without = random_layer(dropout=0.0)
    assert torch.equal(layer.eval()(x), without(x))


def test_a_new_layer_is_in_the_mode_of_the_model_around_it():
    model = adapted_llama(LoRAConfig(dropout=0.5))
    assert torch.equal(logits(model), logits(model))
    assert not any(module.training for module in model.modules())
    merge_lora(model)
    assert not any(module.training for module in model.modules())


def test_only_a_and_b_are_trained():
    model = tiny_llama()
    names = add_lora(model, LoRAConfig(rank=2, targets=ALL))
    assert len(names) == 3 * 7
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{m}.weight" for name in names for m in "AB"}
    model(random_tokens(9), Packed([9])).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained


def test_no_gradient_is_computed_for_a_frozen_weight():
    """By counting operations: backward costs T * in * out once, for the input's gradient."""
    T, D_in, D_out, R = 32, 48, 40, 2
    layer = LoRALinear(nn.Linear(D_in, D_out, bias=False), R, 1.0)
    out = layer(torch.randn(T, D_in, requires_grad=True))
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    update = 2 * T * R * (D_in + D_out)
    assert counter.get_total_flops() == 2 * T * D_in * D_out + 2 * update


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"targets": ("wq", "q_proj")}, r"no layer is called \['wq'\].* down_proj, gate_proj"),
        ({"targets": ("self_attn",)}, r"no layer is called \['self_attn'\]"),
        ({"targets": ("q",)}, r"no layer is called \['q'\]"),
        ({"targets": ()}, "no layer is called"),
        ({"targets": ("lm_head",)}, "lm_head shares its weight"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": -4}, "rank is -4"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": math.nan}, "dropout is nan"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_model_left_as_it_was(settings, message):
    model = tiny_llama()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        add_lora(model, LoRAConfig(**settings))
    assert state(model) == before


def test_a_second_adapter_is_refused_and_the_first_left_as_it_was():
    model = adapted_llama(LoRAConfig(rank=3))
    before = state(model)
    with pytest.raises(ValueError, match="LoRA layers already"):
        add_lora(model, LoRAConfig(targets=MLP))
    assert state(model) == before


def test_an_untied_head_can_be_adapted():
    model = tiny_llama(tie_word_embeddings=False)
    assert add_lora(model, LoRAConfig(targets=("lm_head",))) == ["lm_head"]


def test_switched_off_the_model_computes_what_it_did_before(device):
    base = logits(tiny_llama().to(device))
    model = adapted_llama(CONFIG).to(device)
    tuned = logits(model)
    assert relative_error(tuned, base) > 0.1
    with lora_disabled(model):
        assert torch.equal(logits(model), base)
        with lora_disabled(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), tuned)


def test_the_switch_returns_to_where_it_was_even_after_an_error():
    model = adapted_llama(CONFIG)
    layers = list(lora_layers(model).values())
    layers[2].enabled = False
    before = logits(model)
    with pytest.raises(KeyError), lora_disabled(model):
        raise KeyError
    assert [layer.enabled for layer in layers] == [i != 2 for i in range(len(layers))]
    assert torch.equal(logits(model), before)


def test_a_merged_model_computes_the_same_and_has_no_lora_layers(device):
    model = adapted_llama(CONFIG).to(device)
    before = logits(model)
    merge_lora(model)
    assert not lora_layers(model)
    assert relative_error(logits(model), before) <= 1e-5
    assert model.state_dict().keys() == tiny_llama().state_dict().keys()


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_merge_in_bf16_is_the_exact_sum_rounded_once(use_rslora, device):
    layer = random_layer(use_rslora=use_rslora)
    layer.base.bfloat16()
    layer.to(device)
    update = layer.lora_B.weight @ layer.lora_A.weight
    wanted = (layer.base.weight.float() + layer.scale * update).bfloat16()
    assert torch.equal(layer.merged().weight, wanted)


def test_merging_is_free_of_side_effects():
    layer = random_layer(bias=True)
    before = copy.deepcopy(layer.state_dict())
    merged = layer.merged()
    assert torch.equal(merged.bias, layer.base.bias)
    assert torch.equal(merged.weight, layer.merged().weight)
    merged.weight.zero_()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_adapter_that_answers_computes_what_it_did(dtype):
    """Seen to fail when A was rounded to float16, and when nothing was rounded."""
    model = tiny_llama().to(dtype)
    add_lora(model, LoRAConfig(4, 8.0, 0.0, ATTENTION))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B.weight)
    tokens, pattern = random_tokens(20), Packed([20])
    before = model(tokens, pattern)
    arrange_lora_for_answers(model)
    assert torch.equal(model(tokens, pattern), before)
    for layer in lora_layers(model).values():
        for factor in (layer.lora_A, layer.lora_B):
            assert isinstance(factor, FewRowsFactor) == (dtype == torch.bfloat16)
            assert getattr(factor, "rounded", factor.weight).dtype == dtype
            assert factor.training == layer.training


@pytest.mark.parametrize("rows", [1, FEW_ROWS])
def test_few_tokens_are_corrected_at_least_as_exactly(rows):
    """Seen to fail when float32 was returned, and when the weights were float8 numbers."""
    torch.manual_seed(rows)
    layer = LoRALinear(nn.Linear(512, 2048, bias=False, dtype=torch.bfloat16), 4, 6.0)
    nn.init.normal_(layer.lora_B.weight, std=0.5)
    x = torch.randn(rows, 512).bfloat16()
    frozen, a, b = (w.weight.double() for w in (layer.base, layer.lora_A, layer.lora_B))
    exact = x.double() @ (frozen + layer.scale * b @ a).T
    with torch.no_grad():
        before = layer(x)
        arrange_lora_for_answers(nn.Sequential(layer))
        after = layer(x)
    assert after.dtype == torch.bfloat16
    off = [float((found.double() - exact.detach()).norm()) for found in (before, after)]
    assert off[1] <= off[0]


def test_taking_lora_out_gives_back_the_very_same_layers():
    model = tiny_llama()
    before = dict(model.named_modules()), dict(model.named_parameters())
    base = logits(model)
    add_lora(model, CONFIG)
    for layer in lora_layers(model).values():
        nn.init.ones_(layer.lora_B.weight)
    remove_lora(model)
    after = dict(model.named_modules()), dict(model.named_parameters())
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys() and all(old[name] is new[name] for name in old)
    assert torch.equal(logits(model), base)
