"""What a run is made of: found, checked, loaded, and restored where it left off.

`train.py` begins with `prepare` and `resume`; what it does with the parts stands there.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.batches import steps_per_epoch
from data.chat_format import ChatFormat, Message, chat_format_of
from data.hub import fetch_model, pinned, settings_sha256
from data.snapshot import check_hub_settings
from data.tokenizer import Tokenizer
from data.training_data import TrainingData, load_training_data
from lora.adapter import adapter_files
from lora.backup import Backup, Place
from lora.checkpoint import load_checkpoint, trainable
from lora.choose_run import choose_config, choose_folder
from lora.config import CARD, BaseModel
from lora.folder_backup import FolderPlace
from lora.inject import add_lora
from lora.interrupt import Interrupt
from lora.model_card import CardFacts, model_card
from lora.progress import plan
from lora.repair import own_config, repair, whole_config
from lora.restore import check_apart, fetch_newer, refuse_taken
from lora.run_folder import RunFolder
from lora.train_config import HUB, TrainConfig
from model.config import LlamaConfig
from model.device import DTYPES, choose_dtype
from model.generation_config import room_for, stop_ids
from model.llama import MLP, Llama
from model.memory import fit_passes, recompute_activations, training_bytes
from model.weights import load_model, weights_sha256
from model.world import World, is_main


@dataclass
class Run:
    """What the functions below share."""

    config: TrainConfig
    folder: RunFolder
    backup: Backup
    world: World
    tokenizer: Tokenizer
    data: TrainingData
    prompts: list[list[int]]
    model: Llama
    base: BaseModel
    settings_sha256: str
    stop_ids: frozenset[int]
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    interrupt: Interrupt = field(default_factory=Interrupt)

    @property
    def steps(self) -> int:
        """How many optimizer steps the whole run has."""
        if self.config.max_steps is not None:
            return self.config.max_steps
        per_epoch = steps_per_epoch(self.data.mixture, self.config.batch_size)
        return max(1, math.ceil(self.config.epochs * per_epoch))

    @property
    def micro_batch_tokens(self) -> int:
        """The most tokens in one forward pass; `fit_to_machine` has settled it."""
        assert self.config.micro_batch_tokens is not None
        return self.config.micro_batch_tokens

    def is_asked_to_stop(self) -> bool:
        """Whether any process was. All must ask, at the same place, so that all stop there."""
        return self.world.any(bool(self.interrupt.signal))

    def was_evaluated(self, done: int) -> bool:
        """Whether the log of the run has what was due after `done` steps. All must ask."""
        return self.world.any(self.folder.writes and self.folder.was_evaluated(done))


def prepare(given: Mapping[str, Any]) -> Run:
    """Finds, checks and loads all that the flags name.

    Nothing is written into the run's folder but, if a backup has one that is newer, a checkpoint.
    """
    folder = choose_folder(given, writes=is_main())
    world = World(given.get("device", "auto"))
    with world.main_first():
        world.print_all(repair(folder) if given.get("resume") else [])
        backup = open_backup(given, folder)
        fetch_newer(folder, backup, given) if given.get("resume") else refuse_taken(backup)
        world.print_all(backup.take_news())
    saved = own_config(folder) if given.get("resume") else {}
    config = choose_config(given, saved, folder.path)
    with world.main_first():
        snapshot = fetch_model(pinned(config.model, saved.get("model_revision")))
        snapshot.verify()
    # All that may be wrong with the model is found before the data are tokenised, which takes long.
    chat_format = chat_format_of(Tokenizer.from_folder(snapshot.path))
    stops = stop_ids(snapshot.path) | chat_format.end_ids
    dtype = choose_dtype(config.dtype, world.device)
    model = load_model(snapshot.path, dtype, world.device).train()
    prompts = sample_prompts(config, chat_format, model.config)
    torch.manual_seed(config.seed)
    add_lora(model, config.lora)
    with world.main_first():
        data = load_data(config, chat_format, saved.get("data_revisions", {}))
    if data.flaws:
        world.print(data.flaws)
    config = fit_to_machine(config, model, world, longest=int(data.train.lengths.max()))
    # In float16 small gradients would round to zero. So the loss is scaled up, and the gradients
    # are scaled down again once they are in float32. For other dtypes the scaler does nothing.
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
    base = BaseModel(snapshot.public_name, snapshot.revision, weights_sha256(snapshot.path))
    return Run(
        config=config,
        folder=folder,
        backup=backup,
        world=world,
        tokenizer=chat_format.tokenizer,
        data=data,
        prompts=prompts,
        model=model,
        base=base,
        settings_sha256=settings_sha256(snapshot.path),
        stop_ids=stops,
        optimizer=adam_w(model, config, world.device),
        scaler=scaler,
    )


def adam_w(model: Llama, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the weights that are trained."""
    return torch.optim.AdamW(
        [p for _, p in trainable(model)],
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )


def open_backup(given: Mapping[str, Any], folder: RunFolder) -> Backup:
    """Where checkpoints are copied to, if anywhere: the main process does that for all."""
    saved = whole_config(folder) if given.get("resume") else {}
    name = given.get("backup", saved.get("backup"))
    if name is None or not folder.writes:
        return Backup(None)
    place: Place
    if name.startswith(HUB):
        check_hub_settings()
        from data.hub_backup import HubPlace

        place = HubPlace(name.removeprefix(HUB))
    else:
        place = FolderPlace(Path(name).expanduser())
        check_apart(place.path, folder)
    place.open()
    return Backup(place)


def load_data(
    config: TrainConfig, chat_format: ChatFormat, revisions: Mapping[str, str | None]
) -> TrainingData:
    """The conversations to learn from and those to evaluate on, as tokens."""
    held_out_from = config.eval_data
    return load_training_data(
        names=[pinned(name, revisions.get(name)) for name in config.data],
        weights=config.data_weights,
        held_out_from=held_out_from and pinned(held_out_from, revisions.get(held_out_from)),
        held_out_size=config.eval_size,
        chat_format=chat_format,
        max_length=config.max_length,
        train_on=config.train_on,
        strict=config.strict_data,
        max_dropped=config.max_dropped,
    )


def sample_prompts(
    config: TrainConfig, chat_format: ChatFormat, llama: LlamaConfig
) -> list[list[int]]:
    """The ids of the sample prompts. Raises ValueError if one leaves no room for an answer."""
    questions = [[Message("user", prompt)] for prompt in config.sample_prompts]
    prompts = [r.ids for r in chat_format.render_batch(questions, generation_prompt=True)]
    for prompt in prompts:
        room_for(llama, prompt, 1)
    return prompts


def fit_to_machine(config: TrainConfig, model: Llama, world: World, longest: int) -> TrainConfig:
    """Settles what is left to the machine, and returns the configuration with it."""
    dtype = next(name for name, dtype in DTYPES.items() if dtype == model.lm_head.weight.dtype)
    tokens, recompute = fit_passes(
        model, world.device, world.sharing, longest, config.checkpoint_activations
    )
    # How conversations are packed is no secret of one process: all go by the one with least memory.
    tokens, recompute = world.least(tokens), world.any(recompute)
    if recompute:
        recompute_activations(model)
    if config.compile:
        for module in model.modules():
            if isinstance(module, MLP):  # attention depends on where conversations begin and end
                module.compile(dynamic=True)
    return dataclasses.replace(
        config,
        dtype=dtype,
        micro_batch_tokens=config.micro_batch_tokens or tokens,
        checkpoint_activations="on" if recompute else "off",
    )


def resume(run: Run) -> int:
    """Opens the run's folder and restores its newest whole checkpoint; returns the steps done."""
    sha256 = {
        "base_sha256": run.base.sha256,
        "base_settings_sha256": run.settings_sha256,
        "data_sha256": run.data.sha256,
    }
    saved = run.folder.saved_config()
    for name, value in sha256.items():
        if saved.get(name, value) != value:
            what = name.removesuffix("_sha256").replace("_", " ")
            raise ValueError(
                f"{run.folder.path} was trained on other {what} than {run.config.model} and "
                f"{', '.join(run.config.data)} are now; restore those, or start another run"
            )
    checkpoint, damaged = run.folder.newest_checkpoint()
    older = "going back to the checkpoint before it" if checkpoint else "none before it is whole"
    run.world.print_all(f"{reason}: {older}" for reason in damaged)
    done = 0
    if checkpoint:
        done = load_checkpoint(checkpoint, run.model, run.optimizer, run.scaler)
        run.world.print(f"going on after step {done}, from {checkpoint}")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    found = {
        "model_revision": run.base.revision,
        "data_revisions": {report.name: report.revision for report in run.data.reports},
        "device": str(run.world.device),
    }
    config = dataclasses.asdict(run.config) | sha256 | found | {"versions": versions}
    run.folder.open(config, run.data.as_dict(), done)
    return done


def announce(run: Run) -> None:
    """Says what is about to happen, before it does."""
    parameters = list(run.model.parameters())
    on = run.config.checkpoint_activations == "on"
    numbers = {
        "model": run.config.model,
        "dtype": run.config.dtype,
        "device": run.world.device.type,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "data": ", ".join(run.config.data),
        "conversations": len(run.data.train),
        "tokens": int(run.data.train.lengths.sum()),
        "targets": int(run.data.train.target_counts.sum()),
        "held_out": len(run.data.held_out),
        "steps": run.steps,
        "batch_size": run.config.batch_size,
        "micro_batch_tokens": run.micro_batch_tokens,
        "processes": run.world.size,
        "memory": training_bytes(run.model, run.micro_batch_tokens, on),
        "folder": run.folder.path,
    }
    run.world.print(plan(numbers))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context without dropout and without gradients; afterwards all is as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def result(run: Run) -> dict[str, bytes]:
    """The files of the finished adapter."""
    sources, records = run.data.as_dict()["sources"], run.folder.records()
    card = model_card(CardFacts(run.base, dataclasses.asdict(run.config), sources, records))
    return adapter_files(run.model, run.config.lora, run.base) | {CARD: card.encode()}
