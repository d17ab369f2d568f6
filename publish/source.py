"""What is to be exported: an adapter, the base model it belongs to, and the run it came from.

Needs no PyTorch but to hash the base, so that a wrong name is refused before it is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from data.hub import fetch_model, pinned
from data.snapshot import Snapshot
from lora.choose_adapter import base_of, check_base, check_whole, find_adapter, run_of
from lora.config import CONFIG_FILE, BaseModel, LoRAConfig, read_config
from lora.run_folder import RunFolder


@dataclass(frozen=True)
class Source:
    """An adapter with everything around it.

    Attributes:
        adapter: its folder.
        config: its settings.
        base: what it says of the model it belongs to.
        model: that model's files.
        run: where it was trained; None if it lies in no run.
    """

    adapter: Path
    config: LoRAConfig
    base: BaseModel
    model: Snapshot
    run: RunFolder | None


def open_source(name: str, model: str | None) -> Source:
    """Finds adapter and base, and makes sure that they are whole and belong together.

    Args:
        name: the folder of a run, of an adapter, or of a checkpoint.
        model: the base, if it is not where it was when the adapter was trained: a Hub id, a folder,
            or demo.

    Raises:
        ValueError: if there is no such adapter, or it is damaged, or its base cannot be found or
            is another one.
    """
    adapter = find_adapter(Path(os.path.expanduser(name)))
    check_whole(adapter)
    config, base = read_config(adapter / CONFIG_FILE)
    snapshot = fetch_model(model) if model else fetch_base(adapter)

    from lora.adapter import WEIGHTS_FILE, read_weights
    from model.weights import weights_sha256

    _, sha256 = read_weights(adapter / WEIGHTS_FILE)
    base = BaseModel(base.name, base.revision, sha256)
    check_base(adapter, base, snapshot.name, lambda: weights_sha256(snapshot.path))
    return Source(adapter, config, base, snapshot, run_of(adapter))


def fetch_base(adapter: Path) -> Snapshot:
    """The base model that an adapter names. Raises ValueError if it names none, or it is not there.

    The name may be no help: of a model in a local folder an adapter knows the last part only.
    """
    name, revision = base_of(adapter)
    if name is None:
        raise ValueError(f"{adapter}: does not name its base model; give it by --model")
    try:
        return fetch_model(pinned(name, revision))
    except ValueError as error:
        raise ValueError(
            f"{adapter}: its base model is missing: {error}; or give it by --model"
        ) from None
