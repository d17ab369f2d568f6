"""What a checkpoint holds, and what is refused instead of being half loaded. About 3 seconds.

Seen to fail when moments were matched by their place in the optimizer, and when checkpoints were
ordered as texts.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import random_tokens, tiny_llama
from safetensors.torch import load, save

from lora.adapter import WEIGHTS_FILE
from lora.checkpoint import OPTIMIZER_FILE, checkpoint_files, load_checkpoint, trainable
from lora.checkpoint_folder import checkpoint_name, steps_in
from lora.config import BaseModel, LoRAConfig
from lora.durable import publish_folder
from lora.inject import add_lora
from model.attention import Packed
from model.llama import Llama

CONFIG = LoRAConfig(4, 8.0)
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def adapted(seed: int = 0) -> tuple[Llama, torch.optim.AdamW]:
    model = tiny_llama()
    torch.manual_seed(seed)
    add_lora(model, CONFIG)
    return model, adam(model)


def adam(model: Llama) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for _, p in trainable(model)], lr=1e-2)


def train(model: Llama, optimizer: torch.optim.AdamW, steps: int) -> None:
    for step in range(steps):
        tokens = random_tokens(40, seed=step)
        model.model(tokens, Packed([40])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def files(steps: int = 3) -> dict[str, bytes]:
    model, optimizer = adapted()
    train(model, optimizer, steps)
    return checkpoint_files(steps, model, CONFIG, BaseModel("x"), optimizer, NO_SCALER)


def state_of(model: Llama, optimizer: torch.optim.AdamW) -> dict[str, list[torch.Tensor]]:
    return {name: [p, *optimizer.state[p].values()] for name, p in trainable(model)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    publish_folder(tmp_path / "step-000003", files())
    return tmp_path / "step-000003"


def test_equal_states_have_equal_bytes():
    assert all(files() == files() for _ in range(4))


def test_moments_go_to_the_weight_of_their_name_in_whatever_order_weights_stand(checkpoint):
    """Two projections have weights of the same shape; their momentum must not change places."""
    model, optimizer = adapted()
    train(model, optimizer, 3)
    other, _ = adapted(seed=5)
    for layer in other.model.layers:
        for part in (layer, layer.self_attn):
            part._modules = dict(reversed(part._modules.items()))
    order = [name for name, _ in trainable(model)]
    assert order != [name for name, _ in trainable(other)]
    other_optimizer = adam(other)
    assert load_checkpoint(checkpoint, other, other_optimizer, NO_SCALER) == 3
    wanted, found = state_of(model, optimizer), state_of(other, other_optimizer)
    assert wanted.keys() == found.keys()
    for name in wanted:
        assert len(wanted[name]) == len(found[name]) == 4
        assert all(torch.equal(a, b) for a, b in zip(wanted[name], found[name], strict=True)), name


@pytest.mark.parametrize("file", [WEIGHTS_FILE, OPTIMIZER_FILE])
@pytest.mark.parametrize("change", ["less", "more", "shape"])
def test_a_state_with_another_set_of_tensors_is_refused_and_changes_nothing(tmp_path, file, change):
    """Each in turn; the manifest is right, so it is the contents that must be looked at."""
    good = files()
    for number, name in enumerate(load(good[file])):
        tensors = load(good[file])
        if change == "less":
            del tensors[name]
        elif change == "more":
            tensors[name + "x"] = tensors[name].clone()
        else:
            tensors[name] = tensors[name][None].clone()
        folder = tmp_path / str(number) / "step-000003"
        publish_folder(folder, good | {file: save(tensors)})
        model, optimizer = adapted()
        before = [p.detach().clone() for _, p in trainable(model)]
        with pytest.raises(ValueError, match="is another model's: "):
            load_checkpoint(folder, model, optimizer, NO_SCALER)
        after = [p for _, p in trainable(model)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert not optimizer.state


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_not_saved(value):
    model, optimizer = adapted()
    train(model, optimizer, 1)
    name, weight = trainable(model)[3]
    optimizer.state[weight]["exp_avg_sq"][0, 0] = value
    with pytest.raises(ValueError, match=f"{name}.exp_avg_sq has values that are not finite"):
        checkpoint_files(1, model, CONFIG, BaseModel("x"), optimizer, NO_SCALER)


def test_a_state_before_any_change_of_the_weights_is_saved_and_loaded(tmp_path):
    """As when the gradients of the first steps were not finite: AdamW has no moments then."""
    model, optimizer = adapted()
    state = checkpoint_files(2, model, CONFIG, BaseModel("x"), optimizer, NO_SCALER)
    publish_folder(tmp_path / "step-000002", state)
    other, other_optimizer = adapted(seed=5)
    assert load_checkpoint(tmp_path / "step-000002", other, other_optimizer, NO_SCALER) == 2
    pairs = zip(trainable(model), trainable(other), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (1_000_000, 9, 999_999, 100, 10):
        (tmp_path / checkpoint_name(step)).mkdir()
    assert steps_in(tmp_path) == [9, 10, 100, 999_999, 1_000_000]
