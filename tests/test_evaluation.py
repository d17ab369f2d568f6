"""Evaluating is looking on: it leaves no trace, and its figure is the mean over target tokens.

Takes about ten seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_step_gradients import reference
from training_runs import adapted, examples, run_in_memory, run_on_disk

import train
from lora.run_folder import RunFolder

VARYING = {"seconds", "tokens_per_second", "peak_memory_bytes"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def finished(folder: Path, **flags: Any) -> tuple[bytes, list[dict[str, Any]]]:
    """The adapter of a whole run with dropout, and what was logged of its steps."""
    folder.mkdir()
    assert train.main(run_on_disk(folder, lora_dropout=0.1, max_steps=6, **flags)) == 0
    records = RunFolder(folder / "run", writes=False).records()
    steps = [{k: v for k, v in r.items() if k not in VARYING} for r in records if "loss" in r]
    return (folder / "run/adapter/adapter_model.safetensors").read_bytes(), steps


def test_looking_at_every_step_changes_nothing(tmp_path):
    """Held-out loss and answers after every step, none, or all but the first: the same adapter.

    Seen to fail when the model stayed in evaluation mode.
    """
    never, steps = finished(tmp_path / "never", eval_size=2)
    every, steps_of_every = finished(tmp_path / "every", eval_size=2, eval_every=1, sample_every=1)
    some, steps_of_some = finished(tmp_path / "some", eval_size=2, eval_every=4, sample_every=5)
    assert never == every == some
    assert steps == steps_of_every == steps_of_some


@pytest.mark.parametrize("most", [2, 40, 1000])
def test_the_held_out_loss_is_the_mean_over_all_targets(most):
    """However they are packed, against a padded batch, without dropout.

    Seen to fail when it was the mean of the micro-batches' means, and with dropout.
    """
    model, held_out = adapted(dropout=0.3), examples(seed=5)
    run = run_in_memory(model, examples(), held_out, micro_batch_tokens=most)
    with train.evaluating(model):
        logged = train.evaluate(run)
    assert model.training and torch.is_grad_enabled()
    wanted, _ = reference(model.eval(), held_out)
    targets = sum(int(row.is_target[1:].sum()) for row in held_out)
    assert [r["eval_target_tokens"] for r in logged] == [targets]
    assert logged[0]["eval_loss"] == pytest.approx(wanted, rel=1e-5)


def test_without_held_out_conversations_nothing_is_logged():
    assert train.evaluate(run_in_memory(adapted(), examples())) == []
