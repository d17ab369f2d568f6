"""The README.md of an adapter: what it is, what it was trained on, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora.config import BaseModel

# These may be paths, and tell more of a machine than of an adapter.
PRIVATE = {"model", "data", "eval_data", "output", "resume", "demo"}


def model_card(
    base: BaseModel, data: Sequence[str], flags: Mapping[str, Any], losses: Sequence[float]
) -> str:
    """The text, with the metadata that the Hub reads in front.

    Args:
        base: what the adapter belongs to.
        data: the data sets' names.
        flags: every setting of the run.
        losses: of each evaluation, in nats per held-out target token.
    """
    is_on_hub = base.revision is not None and base.name is not None
    metadata = ["library_name: peft", "tags: [lora]"]
    if is_on_hub:
        metadata.append(f"base_model: {json.dumps(base.name)}")
    rows = "\n".join(
        f"| `--{name.replace('_', '-')}` | {shown(value)} |"
        for name, value in flags.items()
        if name not in PRIVATE
    )
    revision = f" at revision `{base.revision}`" if base.revision else ""
    measured = ""
    if losses:
        measured = (
            f"\nLoss on held-out conversations: {losses[0]:.4f} nats per target token before, "
            f"{losses[-1]:.4f} after.\n"
        )
    return f"""---
{chr(10).join(metadata)}
---

# A LoRA adapter for {base.name}

It belongs to the weights of `{base.name}`{revision} (sha256 `{base.sha256}`)
and was trained on {", ".join(f"`{name}`" for name in data)}.
{measured}
The files are in the format of the PEFT library: `PeftModel.from_pretrained(model, folder)` loads
them.

| setting | value |
|---|---|
{rows}
"""


def shown(value: Any) -> str:
    """A setting's value as it would be typed."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)).replace("|", "\\|")
    return str(value).replace("|", "\\|")
