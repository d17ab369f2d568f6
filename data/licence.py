"""What the Hub states of a licence."""

from __future__ import annotations

from huggingface_hub import DatasetInfo, ModelInfo, constants, repo_info

from data.download import TROUBLE, silent_client_log


def stated_license(id: str, type: str, revision: str | None = None) -> str | None:
    """The licence in the metadata of a repo's card: "" if it states none, None if nobody answers.

    Args:
        id: of a repo on the Hub.
        type: "model" or "dataset".
        revision: a commit.
    """
    if constants.is_offline_mode():
        return None
    try:
        with silent_client_log():
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            info = repo_info(id, repo_type=type, revision=revision, timeout=timeout)
            assert isinstance(info, ModelInfo | DatasetInfo)
            stated = info.card_data.get("license") if info.card_data else None
    except (*TROUBLE, KeyError, TypeError, AttributeError):
        return None
    names = stated if isinstance(stated, list) else [stated]
    return ", ".join(map(str, names)) if all(names) else ""
