"""An adapter or a merged model put on the Hub, with a card that tells where it comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Any

from data.licence import stated_license
from data.repo import Repo
from data.snapshot import HubError
from data.upload import commit_files, list_repo, open_repo
from lora.adapter import WEIGHTS_FILE
from lora.checkpoint_folder import CHECKPOINT_NAME
from lora.config import CARD, CONFIG_FILE, BaseModel
from lora.model_card import CardFacts, is_on_hub, model_card
from lora.run_folder import DATA
from publish.curve import draw_curve
from publish.source import Source

PICTURE = "loss.png"
MERGED_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def open_target(repo: str, private: bool, is_merged: bool) -> None:
    """Makes sure that a repo can be pushed to, before anything slow; makes it if it is not there.

    Args:
        repo: `owner/name`.
        private: only the owner can see it.
        is_merged: whether a merged model will be pushed to it, and not an adapter.

    Raises:
        HubError: it cannot be written, or holds the other of the two; see `open_repo`.
    """
    open_repo(repo, private)
    _, present = list_repo(repo)
    has_model = any(MERGED_WEIGHTS.fullmatch(name) for name in present)
    if CONFIG_FILE in present if is_merged else has_model:
        what = "an adapter" if is_merged else "a whole model"
        raise HubError(
            f"{Repo(repo).page} holds {what}, which programs would confuse with this: "
            "give another name"
        )


def push(source: Source, repo: str, merged: Path | None) -> str:
    """Uploads the adapter, or the merged model, in one commit, and nothing else is changed.

    Only weights of a merged model that was there before are removed, since a program might load
    these instead.

    Args:
        source: the adapter.
        repo: `owner/name`, as `open_target` has seen it.
        merged: the folder of the merged model, if that is what to upload.

    Returns:
        The address of its page.

    Raises:
        HubError: it could not be written.
    """
    _, present = list_repo(repo)
    old_weights = {name for name in present if MERGED_WEIGHTS.fullmatch(name)}
    base = public_base(source)
    files = merged_files(merged) if merged else public_files(source.adapter, base)
    records = records_of(source)
    picture = draw_curve(records)
    if picture:
        files[PICTURE] = picture
    is_known = is_on_hub(base)
    facts = CardFacts(
        base=base,
        flags=source.run.saved_config() if source.run else settings_of(source),
        sources=sources_of(source),
        records=records,
        base_license=stated_license(str(base.name), "model", base.revision) if is_known else None,
        repo=repo,
        is_merged=merged is not None,
        picture=PICTURE if picture else None,
    )
    files[CARD] = model_card(facts).encode()
    what = "merged model" if merged else "adapter"
    commit_files(repo, files, f"A LoRA {what}", old_weights - files.keys(), show_progress=True)
    return Repo(repo).page


def public_base(source: Source) -> BaseModel:
    """The base model under a name that others understand, and that tells no folder of ours."""
    base, model = source.base, source.model
    if is_on_hub(base) and not Path(str(base.name)).exists():
        return base
    if model.revision:
        return BaseModel(model.name, model.revision, base.sha256)
    return BaseModel(PurePath(base.name or model.public_name).name, None, base.sha256)


def public_files(folder: Path, base: BaseModel) -> dict[str, bytes | Path]:
    """The adapter's two files, the base's name in them made public."""
    content = (folder / CONFIG_FILE).read_bytes()
    raw = json.loads(content)
    public = {"base_model_name_or_path": base.name, "revision": base.revision}
    if any(raw.get(name) != value for name, value in public.items()):
        content = (json.dumps(raw | public, indent=2) + "\n").encode()
    return {CONFIG_FILE: content, WEIGHTS_FILE: folder / WEIGHTS_FILE}


def merged_files(folder: Path) -> dict[str, bytes | Path]:
    """All files of a merged model."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def settings_of(source: Source) -> dict[str, Any]:
    """What an adapter says of its training."""
    lora = source.config
    return {
        "lora_rank": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_targets": lora.targets,
        "use_rslora": lora.use_rslora,
    }


def records_of(source: Source) -> list[dict[str, Any]]:
    """The run's metrics, of a checkpoint those up to it."""
    records = source.run.records() if source.run else []
    checkpoint = CHECKPOINT_NAME.fullmatch(source.adapter.resolve().name)
    return [r for r in records if not checkpoint or r["step"] <= int(checkpoint[1])]


def sources_of(source: Source) -> list[dict[str, Any]]:
    """What data.json says of the data sets, with their licences; nothing if there is none."""
    if source.run is None:
        return []
    try:
        sources = json.loads((source.run.path / DATA).read_bytes())["sources"]
        return [
            s | {"license": s["revision"] and stated_license(s["name"], "dataset", s["revision"])}
            for s in sources
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
