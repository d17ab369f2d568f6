"""The same LoRA training step here and in transformers + peft, on the same weights and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from data.batches import MicroBatch, pack
from data.dataset import Example
from lora.adapter import PREFIX, adapter_tensors
from lora.config import ATTENTION, MLP, LoRAConfig
from lora.inject import add_lora
from model.config import LlamaConfig, RopeScaling
from model.llama import Llama
from model.memory import recompute_activations
from train import summed_loss

RANK, ALPHA, GRAD_CLIP, LEARNING_RATE = 16, 32.0, 1.0, 2e-4
LLAMA_3_2 = RopeScaling(32.0, 1.0, 4.0, 8192)
SHAPES = {  # vocabulary, width, inner width, layers, query heads, key heads, head size
    "1b": (128_256, 2048, 8192, 16, 32, 8, 64, 500_000.0, LLAMA_3_2),
    "135m": (49_152, 576, 1536, 30, 9, 3, 64, 100_000.0, None),
    "tiny": (2048, 64, 128, 2, 4, 2, 16, 10_000.0, None),
}
# Tokens of each conversation, and which share of them is learnt.
WORKS = {"chat": ([120, 260, 480, 1024], 0.55), "full": ([1024], 1.0)}


@dataclass(frozen=True)
class Setting:
    """What to train, and how."""

    shape: str
    work: str
    dtype: torch.dtype
    targets: str = "attention"
    layers: int | None = None
    recompute: bool = False
    micro_batch_tokens: int = 2048  # on our side; theirs is padded, or one conversation at a time

    @property
    def config(self) -> LlamaConfig:
        """The model's dimensions."""
        vocab, width, inner, layers, heads, key_heads, size, theta, scaling = SHAPES[self.shape]
        return LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=self.layers or layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=size,
            max_position_embeddings=131_072,
            rms_norm_eps=1e-5,
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=True,
        )

    @property
    def lora(self) -> LoRAConfig:
        """The adapter's settings."""
        names = ATTENTION if self.targets == "attention" else ATTENTION + MLP
        return LoRAConfig(RANK, ALPHA, 0.0, names)


class Step:
    """One side: a model with an adapter and its optimizer.

    Args:
        model: what to train.
        loss: computes the mean loss over the targets, and leaves gradients.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], float]) -> None:
        self.model, self.loss = model, loss
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.weights, lr=LEARNING_RATE, weight_decay=0.0)

    def __call__(self) -> float:
        """Takes one optimizer step; returns the loss before it."""
        loss = self.loss()
        nn.utils.clip_grad_norm_(self.weights, GRAD_CLIP)
        self.adam.step()
        self.adam.zero_grad()
        return loss


def examples(setting: Setting) -> list[Example]:
    """Random conversations, in each of which a stretch is not learnt."""
    rng = np.random.default_rng(0)
    lengths, share = WORKS[setting.work]
    made = []
    for length in lengths:
        is_target = np.arange(length) >= round(length * (1 - share))
        is_target[0] = False
        tokens = rng.integers(setting.config.vocab_size, size=length).astype("<u4")
        made.append(Example(tokens, is_target))
    return made


def random_llama(setting: Setting) -> Llama:
    """A Llama with random weights and a random adapter, B not zero."""
    with torch.device("meta"):
        model = Llama(setting.config)
    model.to_empty(device="cpu")
    model.lm_head.weight = model.model.embed_tokens.weight
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_norm = name.endswith("norm.weight")
        value = torch.empty(parameter.shape).normal_(float(is_norm), 0.02, generator=generator)
        owner, _, attribute = name.rpartition(".")
        weight = nn.Parameter(value.to(setting.dtype), requires_grad=False)
        setattr(model.get_submodule(owner), attribute, weight)
    model.lm_head.weight = model.model.embed_tokens.weight
    add_lora(model, setting.lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.train()


def ours(setting: Setting, model: Llama) -> Step:
    """This project's step: packed, logits where there is a target."""
    if setting.recompute:
        recompute_activations(model)
    conversations = examples(setting)
    packs = pack([len(e.tokens) for e in conversations], setting.micro_batch_tokens)
    batches = [MicroBatch.of([conversations[i] for i in places]) for places in packs]
    count = sum(len(batch.targets) for batch in batches)

    def loss() -> float:
        total = 0.0
        for batch in batches:
            mean = summed_loss(model, batch) / count
            mean.backward()
            total += mean.item()
        return total

    return Step(model, loss)


def theirs(setting: Setting, model: Llama, one_by_one: bool = False) -> Step:
    """Transformers + peft on the same weights: padded, or one conversation at a time."""
    peer = their_model(setting, model)
    conversations = examples(setting)
    count = sum(int(e.is_target.sum()) for e in conversations)
    groups = [[e] for e in conversations] if one_by_one else [conversations]
    batches = [padded(group) for group in groups]

    def loss() -> float:
        total = 0.0
        for batch in batches:
            # By this number transformers divides the sum, as its Trainer has it do.
            mean = peer(**batch, num_items_in_batch=torch.tensor(count)).loss
            mean.backward()
            total += mean.item()
        return total

    return Step(peer, loss)


def their_model(setting: Setting, model: Llama) -> nn.Module:
    """The peer, with the frozen weights of `model` themselves and a copy of its adapter."""
    config = transformers.LlamaConfig(**their_config(setting))
    with torch.device("meta"):
        peer = transformers.LlamaForCausalLM(config)
    frozen = {
        name.replace(".base.", "."): p
        for name, p in model.named_parameters()
        if ".lora_" not in name
    }
    peer.load_state_dict(frozen, strict=False, assign=True)
    peer.tie_weights()
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config)
    if setting.recompute:
        peer.gradient_checkpointing_enable({"use_reentrant": False})
        peer.enable_input_require_grads()
    lora = setting.lora
    wanted = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    peer = get_peft_model(peer, wanted)
    own = adapter_tensors(model)
    with torch.no_grad():
        for name, weight in peer.named_parameters():
            if weight.requires_grad:
                weight.data = own[name.replace(".default", "")].clone()
    assert not any(p.is_meta for p in peer.parameters())
    return peer.train()


def their_config(setting: Setting) -> dict:
    """The dimensions in transformers' words."""
    c = setting.config
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling:
        rope |= vars(c.rope_scaling) | {"rope_type": "llama3"}
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        "rms_norm_eps", "tie_word_embeddings",
    )  # fmt: skip
    return {name: getattr(c, name) for name in names} | {
        "rope_parameters": rope,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }


def padded(group: list[Example]) -> dict[str, Tensor]:
    """Conversations as one rectangle, padded on the right, with transformers' labels."""
    longest = max(len(e.tokens) for e in group)
    tokens = torch.zeros(len(group), longest, dtype=torch.int64)
    mask, labels = tokens.clone(), torch.full_like(tokens, -100)
    for row, example in enumerate(group):
        ids = torch.from_numpy(example.tokens.astype("int64"))
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        labels[row, : len(ids)] = torch.where(torch.from_numpy(example.is_target), ids, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def gradients(step: Step, model_prefix: str = "") -> dict[str, Tensor]:
    """The adapter's gradients as one call of `loss` leaves them, by PEFT's names."""
    step.loss()
    found = {
        model_prefix + name.replace(".default", ""): p.grad.clone()
        for name, p in step.model.named_parameters()
        if p.requires_grad and p.grad is not None
    }
    step.adam.zero_grad()
    return found


def disagreement(one: Step, other: Step) -> tuple[float, float]:
    """How far two sides' losses and gradients are apart, each relative to its own size."""
    ours, theirs = gradients(one, PREFIX), gradients(other)
    assert ours.keys() == theirs.keys()
    a, b = one.loss(), other.loss()
    one.adam.zero_grad()
    other.adam.zero_grad()
    error = sum((ours[n].double() - theirs[n].double()).square().sum() for n in ours) ** 0.5
    size = sum(theirs[n].double().square().sum() for n in theirs) ** 0.5
    return abs(a - b) / abs(b), float(error / size)
