"""Everything that is computed is computed on the run's device, shown without a GPU.

On the device `meta` tensors have a shape and no contents. A whole training step, an evaluation and
a generated token run there under a mode that refuses an operation whose tensors are on two devices.
PyTorch would take some of these silently, an index on the processor for one, and wait for the GPU.
The mode counts how often somebody reads a value on the device, which is such a wait: once a step,
once an evaluation.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import adapted, examples, run_in_memory

import train
from lora.inject import lora_disabled
from model.attention import Packed
from model.generate import extend, generate_batch, new_cache, prefill
from model.memory import recompute_activations
from run import Run

aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
READS = {
    aten._local_scalar_dense.default: 1.0,
    aten.is_nonzero.default: True,
    aten.equal.default: True,
}
# Their results' shapes depend on values, so that a GPU has to be waited for.
WAITS = {aten.nonzero.default, aten.masked_select.default, aten.unique_dim.default}


class OneDevice(TorchDispatchMode):
    """Refuses to mix devices; answers and counts reads of what is on `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if devices == {"meta"}:
            self.ran[func.overloadpacket.__name__] += 1
        if func in WAITS and "meta" in devices:
            raise AssertionError(f"{func} has to know values on the device")
        if func in READS and "meta" in devices:
            self.reads += 1
            return READS[func]
        if func is aten._to_copy.default and devices == {"meta"}:
            if torch.device(kwargs.get("device") or "meta").type == "cpu":
                self.reads += 1
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if len(devices) > 1 and func not in MOVES:
            raise AssertionError(f"{func} has tensors on {sorted(devices)}")
        return func(*args, **kwargs)


def meta_run(**settings: Any) -> Run:
    """A run whose model is on `meta`, while its conversations are on the processor."""
    dropout, recompute = settings.pop("lora_dropout", 0.0), settings.pop("recompute", False)
    model = adapted(dropout=dropout).to("meta")
    if recompute:
        recompute_activations(model)
    return run_in_memory(model, examples(), examples(seed=1), device="meta", **settings)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_runs_on_one_device_and_reads_it_once(recompute, dropout):
    """Forward, loss, backward, clipping, optimizer; the read is of the loss and the norm.

    Seen to fail when positions, the targets, the count of targets or the places before targets
    stayed on the processor, and when each micro-batch's loss was read.
    """
    run = meta_run(recompute=recompute, lora_dropout=dropout, micro_batch_tokens=40)
    assert len(train.micro_batches(run, run.data.train, range(8))) > 2
    for step in range(3):
        with OneDevice() as mode:
            train.train_step(run, step)
        assert mode.reads == 1
        assert {"exp_", "embedding", "mm", "addcdiv_"} <= mode.ran.keys()
    assert all(p.device.type == "meta" for p in run.model.parameters())
    moments = [s["exp_avg"] for s in run.optimizer.state.values()]
    assert len(moments) == len(list(p for p in run.model.parameters() if p.requires_grad))
    assert all(moment.device.type == "meta" for moment in moments)


def test_gradients_read_nothing():
    """So that the device is never waited for between micro-batches."""
    run = meta_run(micro_batch_tokens=40)
    batches = train.micro_batches(run, run.data.train, range(8))
    with OneDevice() as mode:
        train.gradients(run, batches)
        run.optimizer.step()
    assert mode.reads == 0


def test_an_evaluation_runs_on_one_device_and_reads_it_once():
    """Seen to fail when each micro-batch's loss was read."""
    run = meta_run(micro_batch_tokens=40)
    with OneDevice() as mode, train.evaluating(run.model):
        train.evaluate(run)
    assert mode.reads == 1 and mode.ran["exp_"] > 2


class Likeliest:
    """A sampler without a random generator, of which there is none on `meta`."""

    def choose(self, logits: Tensor, seen: object) -> Tensor:
        return logits.argmax()


def test_generation_runs_on_one_device_and_reads_it_once_a_token():
    """Prompts of different lengths; what is read are the chosen tokens.

    Seen to fail when the cache's places or the prompts' ends stayed on the processor.
    """
    model = adapted().to("meta").eval()
    with OneDevice() as mode:
        answers = generate_batch(
            model, [[1, 5, 6], [1, 9]], [Likeliest(), Likeliest()], frozenset(), 4
        )
    assert [len(answer) for answer in answers] == [4, 4] and mode.reads == 4

    cache = new_cache(model, 1, 16)
    with OneDevice() as mode:
        prefill(model, cache, [1, 5, 6, 7])
        extend(model, cache, [[8]])
        with lora_disabled(model):
            extend(model, cache, [[9]])
    assert mode.reads == 0


def on_processor(tensor: Tensor) -> Tensor:
    return torch.ones(tensor.shape, dtype=tensor.dtype)


def stray_positions(patch: pytest.MonkeyPatch, run: Run) -> None:
    original = Packed.positions
    patch.setattr(Packed, "positions", lambda self, device: original(self, torch.device("cpu")))


def stray_targets(patch: pytest.MonkeyPatch, run: Run) -> None:
    original = train.summed_cross_entropy
    patch.setattr(
        train, "summed_cross_entropy", lambda h, head, t: original(h, head, on_processor(t))
    )


def stray_count(patch: pytest.MonkeyPatch, run: Run) -> None:
    patch.setattr(run.world, "sum", lambda value: on_processor(value))


def stray_moment(patch: pytest.MonkeyPatch, run: Run) -> None:
    train.train_step(run, 0)
    for state in run.optimizer.state.values():
        state["exp_avg"] = on_processor(state["exp_avg"])


def stray_read(patch: pytest.MonkeyPatch, run: Run) -> None:
    original = train.summed_loss

    def reading(model: Any, batch: Any) -> Tensor:
        loss = original(model, batch)
        assert loss.item() > 0
        return loss

    patch.setattr(train, "summed_loss", reading)


REFUSED = "has tensors on"


@pytest.mark.parametrize("stray", [stray_positions, stray_targets, stray_count, stray_moment])
def test_a_stray_tensor_is_refused(stray, monkeypatch):
    """Or the tests above would show nothing."""
    run = meta_run()
    with torch.device("cpu"), OneDevice():
        stray(monkeypatch, run)
        with pytest.raises((AssertionError, RuntimeError), match=REFUSED):
            train.train_step(run, 1)


def test_a_read_within_a_step_is_counted(monkeypatch):
    """One more for each micro-batch."""
    run = meta_run(micro_batch_tokens=40)
    stray_read(monkeypatch, run)
    with OneDevice() as mode:
        train.train_step(run, 0)
    assert mode.reads == 1 + len(train.micro_batches(run, run.data.train, range(8)))
