"""Where to compute and in which precision, and what a device says when its memory is full."""

from __future__ import annotations

import torch

from model.columns import HAS_FBGEMM

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(name: str) -> torch.device:
    """The device called `name`; for `auto` the first of cuda, mps and cpu that there is.

    Raises:
        ValueError: if the name is unknown, or if this machine has no such device.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_present in present.items() if is_present)
    if name not in present:
        raise ValueError(f"device is {name!r}; choose one of {', '.join(DEVICES)}")
    if not present[name]:
        raise ValueError(f"device is {name!r}, but PyTorch finds none here; use --device cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; for `auto` the fastest that is exact enough on `device`.

    That is bfloat16 where the hardware multiplies it, which has float32's range; else float16 on
    CUDA, whose small range asks for loss scaling in training; else float32.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "auto":
        name = "bf16" if multiplies_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def check_quantize(name: str | None, device: torch.device, dtype: torch.dtype) -> None:
    """Makes sure that weights can be rounded to what `name` says; None leaves them as they are.

    Raises:
        ValueError: if the name is unknown, or if there is no kernel for this device and dtype.
    """
    if name not in (None, "int8"):
        raise ValueError(f"quantize is {name!r}; the only choice is int8, or leave it out")
    if name and (device.type, dtype) != ("cpu", torch.bfloat16):
        what = f"{str(dtype).removeprefix('torch.')} on {device.type}"
        raise ValueError(
            f"quantize is {name!r}, which needs bf16 on a CPU, but this would be {what}; "
            "use --dtype bf16 --device cpu, or leave --quantize out"
        )
    if name and not HAS_FBGEMM:
        raise ValueError(
            f"quantize is {name!r}, which needs FBGEMM, a part of PyTorch for x86 processors that "
            "is not there; leave --quantize out"
        )


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has instructions for it; emulation is slower than the alternatives."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; on a CPU PyTorch has no type for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "out of memory" in str(error).lower() or "can't allocate memory" in str(error)
    )
