"""Every setting of a run, and which of them make it another run.

Each field of `TrainConfig` is a flag of `train.py`. Wrong values are refused here, before anything
is downloaded or written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora.config import ATTENTION, MLP, LoRAConfig

TARGET_GROUPS = {"attention": ATTENTION, "all": ATTENTION + MLP}
CHOICES = {
    "schedule": ("cosine", "linear", "constant"),
    "train_on": ("assistant", "all", "last"),
    "dtype": ("auto", "bf16", "fp16", "fp32"),
    "device": ("auto", "cuda", "mps", "cpu"),
    "checkpoint_activations": ("auto", "on", "off"),
}
HUB = "hub:"  # before the name of a repo that is a backup
# The steps of a run do not depend on these, so it can go on with others.
FREE_ON_RESUME = {
    "output", "resume", "demo", "keep", "backup", "save_every", "eval_every", "sample_prompts",
    "sample_every", "device", "micro_batch_tokens", "checkpoint_activations", "compile",
}  # fmt: skip
# What a run's config.json says beside the flags.
FOUND: dict[str, Any] = {
    "model_revision": str | None,
    "data_revisions": dict[str, str | None],
    "base_sha256": str,
    "base_settings_sha256": str,
    "data_sha256": str,
}


def flag(default: Any, help: str) -> Any:
    """A setting: its default and its line in `--help`."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, how, and where to write it.

    Raises:
        ValueError: naming a setting that cannot be, its value and what could be.
    """

    model: str = flag(
        "unsloth/Llama-3.2-1B-Instruct", "Hub id (optionally id@revision), local folder, or demo"
    )
    data: tuple[str, ...] = flag(
        ("mlabonne/FineTome-100k",),
        "one or more of: Hub data set id, .parquet/.jsonl/.json file, folder of those, demo",
    )
    data_weights: tuple[float, ...] = flag(
        (), "each data set's share of an epoch, in any unit (default: by its size)"
    )
    demo: bool = flag(
        False, "train the embedded demo, with defaults of its own: a minute on two CPU cores"
    )
    output: str | None = flag(None, "the run's folder (default: runs/MODEL-DATA)")
    resume: bool = flag(
        False,
        "go on where --output, or else the newest run of this --model and --data, has stopped; "
        "start if there is none",
    )
    # The optimizer
    lr: float = flag(2e-4, "learning rate at its peak")
    schedule: str = flag("cosine", "how it falls: cosine, linear, or constant, which does not")
    warmup_steps: int = flag(5, "steps in which it rises from 0, in a line")
    min_lr_ratio: float = flag(0.0, "where it ends, as a share of its peak")
    epochs: float = flag(1.0, "passes over the data")
    max_steps: int | None = flag(
        None, "optimizer steps, instead of --epochs; 0 only writes the untrained adapter"
    )
    batch_size: int = flag(8, "conversations per optimizer step, over all devices")
    micro_batch_tokens: int | None = flag(
        None, "most tokens in one forward pass; changes speed and memory only (default: by memory)"
    )
    weight_decay: float = flag(0.0, "AdamW's")
    grad_clip: float = flag(1.0, "longest gradient; a longer one is scaled down to it")
    beta1: float = flag(0.9, "AdamW's memory of gradients")
    beta2: float = flag(0.999, "AdamW's memory of their squares")
    # LoRA
    lora_rank: int = flag(16, "r, the rank of the update")
    lora_alpha: float = flag(16.0, "the update is scaled by alpha / r")
    lora_dropout: float = flag(0.0, "share of the update's inputs that are dropped")
    lora_targets: tuple[str, ...] = flag(
        ("attention",), "attention (q, k, v, o), all (gate, up, down too), or names of layers"
    )
    use_rslora: bool = flag(False, "scale by alpha / sqrt(r) instead")
    # The conversations
    max_length: int = flag(2048, "tokens of a conversation; longer ones lose their end")
    train_on: str = flag("assistant", "what is learnt: assistant (turns), all, or last (turn)")
    strict_data: bool = flag(False, "stop at flawed rows instead of dropping them")
    max_dropped: float = flag(0.1, "largest share of flawed rows that may be dropped")
    # Watching it
    eval_size: int = flag(
        200, "conversations held out to evaluate on, at most a tenth of yours; 0 for none"
    )
    eval_data: str | None = flag(
        None, "evaluate on the test split of this data set instead of holding some out"
    )
    eval_every: int = flag(100, "steps between evaluations; also before the first and at the end")
    sample_prompts: tuple[str, ...] = flag(
        ("What is a LoRA adapter?", "Write two lines about the sea."),
        "what the model is asked at each sampling",
    )
    sample_every: int | None = flag(
        None, "steps between samplings; 0 for none (default: at every evaluation)"
    )
    save_every: int = flag(100, "steps between checkpoints; also at the end and when interrupted")
    keep: int = flag(3, "newest checkpoints that are kept")
    backup: str | None = flag(
        None, "copy each checkpoint in the background to this folder, or to hub:USER/NAME"
    )
    # The machine
    dtype: str = flag("auto", "bf16, fp16 or fp32; auto takes the fastest the hardware has")
    device: str = flag("auto", "cuda, mps or cpu; auto takes the first that there is")
    checkpoint_activations: str = flag(
        "auto", "on: half of the memory for activations, a sixth more time; auto: if need be"
    )
    compile: bool = flag(False, "use torch.compile")
    seed: int = flag(3407, "fixes data order, start and dropout")

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                refuse(name, getattr(self, name), f"choose one of {', '.join(choices)}")
        for name in ("lr", "grad_clip", "lora_alpha", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                refuse(name, getattr(self, name), "it must be above 0")
        for name in ("batch_size", "lora_rank", "keep", "save_every"):
            if getattr(self, name) < 1:
                refuse(name, getattr(self, name), "it must be at least 1")
        for name in ("warmup_steps", "weight_decay", "eval_size", "eval_every", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                refuse(name, getattr(self, name), "it must be at least 0")
        for name in ("beta1", "beta2", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                refuse(name, getattr(self, name), "it must be at least 0 and below 1")
        if not 0 <= self.min_lr_ratio <= 1:
            refuse("min_lr_ratio", self.min_lr_ratio, "it is a share of --lr, from 0 to 1")
        if not 0 <= self.max_dropped <= 1:
            refuse("max_dropped", self.max_dropped, "it is a share of rows, from 0 to 1")
        if self.max_length < 2:
            refuse("max_length", self.max_length, "a token and one to predict it from are 2")
        for name, least in (("max_steps", 0), ("sample_every", 0), ("micro_batch_tokens", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                refuse(name, value, f"it must be at least {least}")
        if self.data_weights and len(self.data_weights) != len(self.data):
            given = " ".join(map(str, self.data_weights))
            refuse("data_weights", given, f"give as many as --data has sets, {len(self.data)}")
        for weight in self.data_weights:
            if not 0 < weight <= 1e9:
                refuse("data_weights", weight, "every share is above 0 and at most 1e9")
        if "lm_head" in self.lora_targets:
            refuse("lora_targets", "lm_head", "the head stays frozen, name layers below it")
        if self.backup == "":
            refuse("backup", "empty", "give a folder, or hub:USER/NAME")
        if self.seed >= 2**63:
            refuse("seed", self.seed, "it must be below 2^63")
        for field in dataclasses.fields(self):
            if not is_text(getattr(self, field.name)):
                refuse(field.name, repr(getattr(self, field.name)), "rename it to UTF-8 text")

    @property
    def lora(self) -> LoRAConfig:
        """The settings of the adapter."""
        groups = (TARGET_GROUPS.get(target, (target,)) for target in self.lora_targets)
        targets = tuple(dict.fromkeys(name for group in groups for name in group))
        return LoRAConfig(
            self.lora_rank, self.lora_alpha, self.lora_dropout, targets, self.use_rslora
        )


DEMO: dict[str, Any] = {
    "model": "demo",
    "data": ("demo",),
    "eval_data": "demo",
    "eval_size": 60,
    "max_steps": 100,
    "eval_every": 20,
    "save_every": 20,
    "batch_size": 16,
    "micro_batch_tokens": 2048,
    "warmup_steps": 20,
    "lora_alpha": 256.0,
    "dtype": "fp32",
    "sample_prompts": ("Where does Anna live?", "Count from 3 to 8."),
}


def is_text(setting: object) -> bool:
    """Whether a setting can be written down: a file's name may have bytes that are no text."""
    try:
        json.dumps(setting, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse(name: str, value: object, what_to_do: str) -> None:
    """Raises ValueError in the words of the command line."""
    raise ValueError(f"--{name.replace('_', '-')} is {value}; {what_to_do}")


def complete(given: Mapping[str, Any]) -> TrainConfig:
    """The configuration for the flags that were given; `--demo` has defaults of its own."""
    return TrainConfig(**defaults(given) | dict(given))


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `--demo` sets where no flag does."""
    return DEMO if given.get("demo") else {}


def check_kinds(saved: Mapping[str, Any]) -> None:
    """Refuses what a program cannot have saved. Raises ValueError naming the setting."""
    kinds = typing.get_type_hints(TrainConfig) | FOUND
    for name in kinds.keys() & saved.keys():
        if not is_kind(saved[name], kinds[name]):
            raise ValueError(f"{name} is {saved[name]!r}, which it cannot be")


def is_kind(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON, where tuples are lists, is of the kind that a field has."""
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(is_kind(value, part) for part in parts)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list) and all(is_kind(item, parts[0]) for item in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(is_kind(item, parts[1]) for item in value.values())
    if kind is float and type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is kind


def continued(saved: Mapping[str, Any], given: Mapping[str, Any], where: object) -> TrainConfig:
    """The configuration to go on with, from the one that was saved and the flags given now.

    Raises:
        ValueError: naming the flags that would make it another run.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    if "lr" not in saved:  # some model's config.json, or another program's
        raise ValueError(f"{where} is no run, its config.json names no lr: choose another --output")
    before: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if name in fields
    }
    now = defaults(given) | dict(given)
    conflicts = [
        f"--{name.replace('_', '-')} (was {before.get(name)}, now {value})"
        for name, value in now.items()
        # "auto" was settled when the run began, and stays so.
        if name not in FREE_ON_RESUME and value not in (before.get(name), "auto")
    ]
    if conflicts:
        raise ValueError(
            f"{where} was trained with other settings: {', '.join(conflicts)}. Leave these flags "
            "as they were, name another run by --output, or start a new one without --resume"
        )
    changed = {name: value for name, value in given.items() if name in FREE_ON_RESUME}
    return TrainConfig(**before | {"device": "auto"} | changed)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The settings in which two saved configurations are of different runs, and both values.

    What one of them does not say, since it is older, or is no configuration, tells nothing.
    """
    names = {field.name for field in dataclasses.fields(TrainConfig)} - FREE_ON_RESUME
    names |= {"base_sha256", "base_settings_sha256", "data_sha256"}
    return [
        f"{name} ({one[name]} and {other[name]})"
        for name in sorted(names & one.keys() & other.keys())
        if one[name] != other[name]
    ]
