"""What the chat page begins with."""

from __future__ import annotations

from dataclasses import dataclass

from data.command_line import option

PUBLIC_WARNING = (
    "the page is served on {} without a password: whoever can reach this machine can chat, and "
    "name any folder or model for it to load"
)


def is_public(address: str | None) -> bool:
    """Whether others than this machine's users can reach a page that is served there."""
    return address not in ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class PageConfig:
    """What the page begins with; each field is a flag."""

    model: str | None = option(
        None, "Hub id, local folder, or demo (default: that of the adapter, or else demo)"
    )
    adapter: str | None = option(
        None, "adapter, run or checkpoint (default: that of the newest run)"
    )
    runs: str = option("runs", "folder of the runs that are offered")
    dtype: str = option("auto", "bf16, fp16 or fp32; auto takes the fastest the hardware has")
    device: str = option("auto", "cuda, mps or cpu; auto takes the first that there is")
    quantize: str | None = option(
        None, "int8 answers faster on an x86 CPU, from weights of 8 bits (default: not rounded)"
    )
