"""What a name is turned into: a local folder of files, or one line that says why not.

Apart from data/download.py, since the Hub's client takes a quarter of a second to import, for which
nobody who names a local folder should wait.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
GIT_DIGITS = 40
SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")


class HubError(ValueError):
    """A name that could not be turned into files: one line with what is wrong and what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A local folder of files that belong together.

    Attributes:
        path: the folder.
        name: what the user wrote, without a revision.
        revision: the commit on the Hub, 40 hex digits; None for a local folder and the demo.
    """

    path: Path
    name: str
    revision: str | None

    @property
    def public_name(self) -> str:
        """The name to publish: an id, or of a local folder its last part only."""
        return self.name if self.revision else self.path.resolve().name

    def verify(self) -> None:
        """Makes sure that what lies in the Hub's cache is what was downloaded once.

        There a file's blob is named after its content: by sha256 if it is a large one, else by
        git's hash.

        Raises:
            HubError: naming a file that is not, which is then deleted.
        """
        for file in sorted(self.path.rglob("*")) if self.revision else []:
            blob = file.resolve()
            if blob.parent.name != "blobs" or not BLOB.fullmatch(blob.name) or not blob.is_file():
                continue
            if content_hash(blob, len(blob.name) == GIT_DIGITS) != blob.name:
                blob.unlink()
                file.unlink()
                raise HubError(
                    f"{file} is not what was downloaded and was deleted: run the same command again"
                )


def content_hash(path: Path, by_git: bool) -> str:
    """The sha256 of a file, in hex, or git's own hash of a blob.

    That is the sha1 of "blob", a blank, the size in decimal digits, a zero byte and the content.
    """
    git = partial(hashlib.sha1, b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as content:
        return hashlib.file_digest(content, git if by_git else hashlib.sha256).hexdigest()


def hub_snapshot(
    name: str,
    type: Literal["model", "dataset"],
    choose: Callable[[Collection[str], Callable[[str], Path]], list[str]],
) -> Snapshot:
    """The files of a repo on the Hub; see `fetch_repo`, which this imports when it is needed.

    Args:
        name: `owner/name`, optionally `owner/name@revision`.
        type: what kind of repo it is.
        choose: which files are wanted, of those that there are.

    Raises:
        HubError: there is no such repo, it cannot be had, or a setting for the Hub makes no sense.
    """
    check_hub_settings()
    from data.download import fetch_repo
    from data.repo import repo_of

    return fetch_repo(repo_of(name, type), choose)


def check_hub_settings() -> None:
    """Refuses an environment that the Hub's client cannot even be imported in.

    Raises:
        HubError: naming the variable, its value, and what to do.
    """
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not match, or a port that is none
        is_address = False
    if not is_address:
        shown = re.sub(r"//[^/]*@", "//", address)  # a password may stand before the host
        raise HubError(
            f"HF_ENDPOINT is {shown!r}, which is no address: unset it, or write it as "
            "https://huggingface.co"
        )
    for name in SECONDS:
        value = os.environ.get(name, "1")
        if not value.strip().isdecimal():
            raise HubError(f"{name} is {value!r}, not a whole number of seconds: unset it")
