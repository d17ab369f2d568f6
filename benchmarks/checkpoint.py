"""What a checkpoint costs, against the Trainer of transformers with the same peft adapter.

    python -m benchmarks.checkpoint            # Llama 3.2 1B's shape, rank 16 on q, k, v and o
    python -m benchmarks.checkpoint --quick    # only see that it works

Both save the same adapter and the same AdamW moments in turns, each new checkpoint beside the ones
before it, of which three stay. Ours are hashed, on the disk, and read back and compared before they
have their name. The Trainer does none of that, so it is also timed with a `sync` behind it, which
is when its files are safe. First what both have saved is compared. The base's weights are zeros:
they are in no checkpoint.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from benchmarks.peers import Setting, their_model
from lora.adapter import WEIGHTS_FILE
from lora.checkpoint import OPTIMIZER_FILE, checkpoint_files
from lora.config import BaseModel
from lora.inject import add_lora
from lora.run_folder import RunFolder
from model.llama import Llama

KEEP = 3


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to save; by default a temporary folder")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting("tiny" if args.quick else "1b", "chat", torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        model = llama_of_zeros(setting)
        peer = their_model(setting, model)
        ours, run = own_save(setting, model, Path(place) / "ours")
        trainer = trainer_of(peer, model, Path(place) / "theirs")
        saves = {"here": ours, "Trainer": their_save(trainer)}
        saves["Trainer, then sync"] = synced(saves["Trainer"])
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in saves}
        for number in range(1, 1 + (2 if args.quick else args.rounds)):
            for name, save in saves.items():
                os.sync()  # nobody pays for what another has left unwritten
                trainer.state.global_step += 1
                wall, cpu = time.perf_counter(), time.process_time()
                save(number)
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        compare(run, newest(Path(place) / "theirs"), model)
        size = sum(file.stat().st_size for file in run.checkpoint(number).iterdir())
    print(f"{setting.shape}, {size / 1e6:.0f} MB, medians of {len(times['here'])}")
    own = [statistics.median(column) for column in zip(*times["here"], strict=True)]
    for name, rows in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{name:20} {wall:6.3f} s ({wall / own[0]:.2f})  {cpu:6.3f} CPU s ({cpu / own[1]:.2f})"
        )


def llama_of_zeros(setting: Setting) -> Llama:
    """A Llama whose weights take no memory, with a random adapter."""
    with torch.device("meta"):
        model = Llama(setting.config)
    for name, parameter in model.named_parameters():
        owner, _, attribute = name.rpartition(".")
        zeros = nn.Parameter(torch.zeros(parameter.shape, dtype=setting.dtype), requires_grad=False)
        setattr(model.get_submodule(owner), attribute, zeros)
    model.lm_head.weight = model.model.embed_tokens.weight
    add_lora(model, setting.lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def own_save(
    setting: Setting, model: Llama, place: Path
) -> tuple[Callable[[int], None], RunFolder]:
    """What train.py does to save, and the folder that it does it in."""
    adam = stepped([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    base = BaseModel("zeros", None, "0" * 64)
    run = RunFolder(place, writes=True)
    run.open({}, {}, 0)

    def save(step: int) -> None:
        files = checkpoint_files(step, model, setting.lora, base, adam, scaler)
        run.publish_checkpoint(step, files, KEEP)

    return save, run


def stepped(weights: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW after a step with random gradients and no learning rate, which leaves the weights."""
    adam = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    adam.step()
    adam.zero_grad()
    return adam


def trainer_of(peer: nn.Module, model: Llama, place: Path) -> transformers.Trainer:
    """A Trainer that has trained, with the same adapter and moments as `model` has."""
    settings = transformers.TrainingArguments(
        str(place), save_total_limit=KEEP, use_cpu=True, report_to=[]
    )
    weights = [p for p in peer.parameters() if p.requires_grad]
    adam = stepped(weights)
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0)
    return transformers.Trainer(peer, settings, optimizers=(adam, decay))


def their_save(trainer: transformers.Trainer) -> Callable[[int], None]:
    """What a Trainer does to save."""
    return lambda number: trainer._save_checkpoint(trainer.model, trial=None)


def synced(save: Callable[[int], None]) -> Callable[[int], None]:
    """The same, and then all that was written is on the disk."""

    def save_and_sync(number: int) -> None:
        save(number)
        os.sync()

    return save_and_sync


def newest(place: Path) -> Path:
    """The Trainer's newest checkpoint."""
    return max(place.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))


def compare(run: RunFolder, theirs: Path, model: Llama) -> None:
    """Makes sure that both have saved the same adapter and the same moments."""
    folder = run.newest_checkpoint()[0]
    assert folder
    own, peer = load_file(folder / WEIGHTS_FILE), load_file(theirs / WEIGHTS_FILE)
    assert own.keys() == peer.keys() and all(torch.equal(own[n], peer[n]) for n in own)
    moments = load_file(folder / OPTIMIZER_FILE)
    saved = torch.load(theirs / "optimizer.pt", weights_only=True)["state"]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == len(saved) and 3 * len(saved) == len(moments)
    for place, name in enumerate(trained):
        for moment, value in saved[place].items():
            assert torch.equal(moments[f"{name}.{moment}"], value), (name, moment)


if __name__ == "__main__":
    main()
