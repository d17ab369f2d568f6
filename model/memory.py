"""How much memory training takes, before it starts and while it runs.

What a layer keeps for its backward pass is known from the code: a frozen linear map needs no input,
a trained one needs it, an activation function needs its argument. Adding that up per token says how
many tokens fit into one forward pass.

Shapes: D hidden_size, F intermediate_size, H query heads, K key/value heads, E head_dim.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.config import LlamaConfig
from model.llama import MLP, Llama
from model.loss import CHUNK

SHARE = 0.6  # of the free memory; the rest is for the allocator's gaps and for other programs
ADAM_BYTES = 16  # per trained weight: itself, its gradient and two moments, in float32
LOGIT_COPIES = 2  # of a chunk, in float32: as computed, and as shares
# More tokens than these at once do not make a step faster.
ENOUGH = {"cpu": 2048, "mps": 8192, "cuda": 32768}


def activation_bytes(config: LlamaConfig, dtype: torch.dtype, recompute: bool) -> int:
    """Bytes that one token takes between the forward and the backward pass."""
    D, F = config.hidden_size, config.intermediate_size
    H, K, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    norms = 2 * D  # their inputs
    attention = D + 3 * H * E + 2 * K * E  # the input, q, k, v, what was seen, its copy for o_proj
    kept = config.num_hidden_layers * (norms + attention)
    if recompute:
        return dtype.itemsize * (kept + config.num_hidden_layers * D + 2 * F)
    return dtype.itemsize * (kept + config.num_hidden_layers * 2 * F)


def training_bytes(model: Llama, tokens: int, recompute: bool) -> int:
    """Bytes that training takes in all, with so many tokens in a forward pass."""
    per_token = activation_bytes(model.config, model.lm_head.weight.dtype, recompute)
    frozen = (p for p in model.parameters() if not p.requires_grad)
    return sum(p.nbytes for p in frozen) + fixed_bytes(model) + tokens * per_token


def fixed_bytes(model: Llama) -> int:
    """Bytes for what is trained, with the optimizer's share, and for a chunk of logits."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ADAM_BYTES * trained + LOGIT_COPIES * 4 * CHUNK * model.config.vocab_size


def fit_passes(
    model: Llama, device: torch.device, processes: int, longest: int, recompute: str
) -> tuple[int, bool]:
    """The most tokens for one forward pass, and whether MLPs have to recompute.

    A power of two, unless the longest conversation has more.

    Args:
        model: on its device already, with its LoRA layers.
        device: whose memory it is.
        processes: how many share that memory.
        longest: tokens of the longest conversation, which a pass has to hold.
        recompute: "on", "off", or "auto" for only if the longest does not fit otherwise.
    """
    fit = tokens_that_fit(model, device, recompute == "on", processes)
    must_recompute = recompute == "auto" and fit < longest
    if must_recompute:
        fit = tokens_that_fit(model, device, True, processes)
    tokens = min(fit, ENOUGH[device.type])
    power_of_two = 1 << (tokens.bit_length() - 1)
    return max(longest, power_of_two), must_recompute or recompute == "on"


def tokens_that_fit(model: Llama, device: torch.device, recompute: bool, processes: int) -> int:
    """How many tokens one forward pass may have for all that is free, at least 1.

    Args:
        model: on its device already, with its LoRA layers.
        device: whose memory it is.
        recompute: whether activations are computed anew in the backward pass.
        processes: how many share the memory.
    """
    free = SHARE * free_bytes(device) / processes - fixed_bytes(model)
    per_token = activation_bytes(model.config, model.lm_head.weight.dtype, recompute)
    return max(int(free / per_token), 1)


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        return linux_bytes("/proc/meminfo", "MemAvailable")
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def linux_bytes(path: str, entry: str) -> int:
    """A number that Linux keeps. Raises OSError or KeyError where there is none."""
    with open(path) as file:
        entries = dict(line.split(":", 1) for line in file)
    return int(entries[entry].split()[0]) * 1024


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had so far, on the device that it computes on."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        return linux_bytes("/proc/self/status", "VmHWM")  # ru_maxrss begins with the parent's
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def recompute_activations(model: Llama) -> None:
    """Lets the MLPs keep their inputs only, and compute what is wide anew in the backward pass.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, but not of whole
    layers: what `gate_proj` and `up_proj` return is half of what a layer keeps, and costs two
    products. Dropout falls on the same units both times, because the state of the random generator
    is kept with the input.
    """
    for module in model.modules():
        if isinstance(module, MLP):
            module.gated = Recomputed(module.gated)  # type: ignore[method-assign]


class Recomputed:
    """A function under `checkpoint`."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self.compute = compute

    def __call__(self, x: Tensor) -> Tensor:
        return checkpoint(self.compute, x, use_reentrant=False, preserve_rng_state=True)
