"""The README.md of an adapter or a merged model: what it is, where it comes from, how to use it.

What a model answered and what folders are called may be any text. In the card it stands in code,
where it is no markup, and the metadata in front holds only what has the shape of a Hub id.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lora.card_usage import code, code_block, how_to_use
from lora.config import BaseModel
from lora.progress import held_out_losses
from lora.train_config import TrainConfig

# These may be paths or anything that a user wrote, and tell more of a machine than of an adapter.
PRIVATE = {
    "model", "data", "eval_data", "output", "resume", "demo", "backup", "sample_prompts",
}  # fmt: skip
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        base: what the adapter belongs to.
        flags: every setting of the run, as far as they are known.
        sources: the data sets as data.json lists them: name, revision, rows_read, kept; those to
            learn from first, as many as there are in the flag `data`. Also its "license", where it
            states one.
        records: of metrics.jsonl.
        base_license: the licence that the base states, "" if it states none; None if it was not
            asked.
        repo: the Hub id that it will have, if it is published.
        is_merged: whether it is a model of its own.
        picture: the file name of the loss curve, if there is one.
    """

    base: BaseModel
    flags: Mapping[str, Any]
    sources: Sequence[Mapping[str, Any]] = ()
    records: Sequence[Mapping[str, Any]] = ()
    base_license: str | None = None
    repo: str | None = None
    is_merged: bool = False
    picture: str | None = None

    @property
    def base_on_hub(self) -> str | None:
        """The base's Hub id, if it has one."""
        return self.base.name if is_on_hub(self.base) else None


def is_on_hub(base: BaseModel) -> bool:
    """Whether a base model's name is a Hub id: a local folder's has no owner and no commit."""
    name = base.name or ""
    return bool(HUB_ID.fullmatch(name)) and ("/" in name or base.revision is not None)


def model_card(facts: CardFacts) -> str:
    """The text, with the metadata that the Hub reads in front."""
    name = code(facts.base.name or "an unknown model")
    kind = "merged into" if facts.is_merged else "for"
    parts = [
        metadata(facts),
        f"# A LoRA adapter {kind} {name}",
        origin(facts),
        how_to_use(
            facts.base,
            facts.base_on_hub,
            facts.repo,
            facts.is_merged,
            facts.flags.get("lora_rank"),
        ),
        results(facts),
        samples(facts.records),
        settings(facts.flags),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(facts: CardFacts) -> str:
    """The front matter. JSON's strings and lists are YAML's, too."""
    lines: dict[str, Any] = {
        "library_name": "transformers" if facts.is_merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "llama"],
    }
    if facts.base_on_hub:
        lines["base_model"] = facts.base_on_hub
        lines["base_model_relation"] = "finetune" if facts.is_merged else "adapter"
        if LICENSE.fullmatch(facts.base_license or ""):
            lines["license"] = facts.base_license
    data = [s["name"] for s in facts.sources if s["revision"] and HUB_ID.fullmatch(s["name"])]
    if data:
        lines["datasets"] = list(dict.fromkeys(data))
    return "\n".join(["---", *(f"{name}: {json.dumps(v)}" for name, v in lines.items()), "---"])


def origin(facts: CardFacts) -> str:
    """Base and data, to the commit, with what is known of their licences."""
    base = facts.base
    revision = f" at revision `{base.revision}`" if base.revision else ""
    sha256 = f" (sha256 of its weights: `{base.sha256}`)" if base.sha256 else ""
    text = f"The base model is {code(base.name or 'unknown')}{revision}{sha256}."
    if facts.base_on_hub and facts.base_license is not None:
        text += f" Licence of the base model: {stated(facts.base_license)}."
    if not facts.sources:
        return text + " What the adapter was trained on is not known."
    num_learnt = len(facts.flags.get("data", ())) or len(facts.sources)
    rows = [
        "| data set | revision | used for | rows kept | rows dropped | licence |",
        "|---|---|---|---|---|---|",
    ]
    for number, source in enumerate(facts.sources):
        read, kept = source.get("rows_read"), source.get("kept")
        counts = [f"{kept:,}", f"{read - kept:,}"] if read is not None and kept else ["", ""]
        use = "training" if number < num_learnt else "evaluation"
        cells = [
            code(public_name(source)), f"`{source['revision']}`" if source["revision"] else "local",
            use, *counts, stated(source.get("license")) if source["revision"] else "",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return text + "\n\n" + "\n".join(rows)


def public_name(source: Mapping[str, Any]) -> str:
    """A data set's name to publish: of local files and folders the last part only."""
    return source["name"] if source["revision"] else PurePath(source["name"]).name


def stated(license: str | None) -> str:
    """What is known of a licence."""
    return "not asked" if license is None else code(license) if license else "states none"


def results(facts: CardFacts) -> str:
    """What the training did to the loss, in a picture and in numbers."""
    losses, lines = held_out_losses(facts.records), []
    if len(losses) > 1:
        lines.append(
            f"Loss on held-out conversations: {losses[0]:.4f} nats per target token before, "
            f"{losses[-1]:.4f} after."
        )
    if facts.picture:
        lines.append(f"![The loss during training]({facts.picture})")
    return "\n\n".join(["## Result", *lines]) if lines else ""


def samples(records: Sequence[Mapping[str, Any]]) -> str:
    """What the model answered at the end of the training, always taking the likeliest token."""
    asked = [record for record in records if "sample" in record]
    last = [record for record in asked if record["step"] == asked[-1]["step"]]
    blocks = [f"{code_block(r['prompt'])}\n\n{code_block(r['sample'])}" for r in last]
    if not blocks:
        return ""
    heading = f"## Answers after step {last[0]['step']}\n\nEach question and, below it, the answer:"
    return "\n\n".join([heading, *blocks])


def settings(flags: Mapping[str, Any]) -> str:
    """All flags that describe the run, none that describe the machine's folders."""
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in PRIVATE]
    rows = [f"| `--{n.replace('_', '-')}` | {shown(flags[n])} |" for n in names if n in flags]
    return "\n".join(["## Settings", "", "| setting | value |", "|---|---|", *rows])


def shown(value: Any) -> str:
    """A setting's value as it would be typed."""
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value)) or "none"
    return code(value) if isinstance(value, str) else str(value)
