"""A repo on the Hub: its name, its place in the cache, and what to say when it cannot be had."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from data.snapshot import HubError

COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")

# The copies that ask for no licence, of the gated models that this project is about.
UNGATED = {
    f"meta-llama/Llama-3.2-{kind}": f"unsloth/Llama-3.2-{kind}"
    for kind in ("1B", "1B-Instruct", "3B", "3B-Instruct")
}

# What reading the answer of something else than a Hub ends in.
NONSENSE = (ValueError, KeyError, TypeError, FileMetadataError)

OUTAGES = (ConnectionError, TimeoutError)
LOG_IN = "`hf auth login` or HF_TOKEN"


@dataclass(frozen=True)
class Repo:
    """A repo on the Hub at one revision (branch, tag or commit), and its place in the cache."""

    id: str
    revision: str = constants.DEFAULT_REVISION
    type: str = constants.REPO_TYPE_MODEL

    @property
    def page(self) -> str:
        """The address of the repo's web page."""
        return f"{endpoint()}/{constants.REPO_TYPES_URL_PREFIXES.get(self.type, '')}{self.id}"

    @property
    def folder(self) -> Path:
        """The repo's folder in the cache."""
        cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
        return cache / repo_folder_name(repo_id=self.id, repo_type=self.type)

    @property
    def ref(self) -> Path:
        """The file in the cache that says which commit the revision is."""
        return self.folder / "refs" / self.revision

    def snapshot(self, commit: str) -> Path:
        """The folder in the cache that holds the files of a commit."""
        return self.folder / "snapshots" / commit

    def unfinished(self, commit: str) -> Path:
        """The file that stands from before a commit's first download until after its last check."""
        return self.folder / "unfinished" / commit


def repo_of(name: str, type: str) -> Repo:
    """The repo on the Hub that a name means, optionally `id@revision`.

    Raises:
        HubError: if it is not of the shape that the Hub's names have.
    """
    id, at, revision = name.partition("@")
    try:
        validate_repo_id(id)
        is_id = not at or bool(REVISION.fullmatch(revision))
    except HFValidationError:
        is_id = False
    if not is_id:
        local = "folder" if type == constants.REPO_TYPE_MODEL else "file or folder"
        raise HubError(
            f"{name!r} is neither a {local} here nor a Hub id: "
            "write owner/name, owner/name@revision, ./folder or demo"
        )
    return Repo(id, revision, type) if at else Repo(id, type=type)


def explain(error: Exception, repo: Repo) -> str | None:
    """Our words for what running again will not change; None for any other trouble."""
    error = cause(error)
    status, log_in = status_of(error), LOG_IN
    copy = f", or use the ungated copy {UNGATED[repo.id]}" if repo.id in UNGATED else ""
    if isinstance(error, GatedRepoError) and status == 401:
        return (
            f"{repo.id} is gated and you are not logged in: accept its licence at {repo.page} and "
            f"log in with {log_in}{copy}"
        )
    if isinstance(error, GatedRepoError):
        return (
            f"{repo.id} is gated and your token has no access: ask for it at {repo.page} and wait "
            f"until it is granted (a fine-grained token must also allow gated repos){copy}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"no folder {repo.id} here, and no {repo.type} at {repo.page} that you may see: "
            f"check the spelling, or if it is private, log in with {log_in}"
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{repo.id} has no revision {repo.revision}: "
            f"choose one at {repo.page}/commits/{constants.DEFAULT_REVISION}"
        )
    if status == 401:
        return refused_token()
    if status == 403:
        return (
            f"{endpoint()} forbids your token to read {repo.id}: "
            f"allow it at {endpoint()}/settings/tokens"
        )
    if isinstance(error, OSError) and error.errno and not isinstance(error, OUTAGES):
        return (
            f"the cache {constants.HF_HUB_CACHE} cannot be written ({error.strerror}): "
            "make room, or set HF_HOME to another folder"
        )
    return None


def explain_writing(error: Exception, repo: Repo) -> str | None:
    """The same where a repo of one's own is written to or read."""
    error = cause(error)
    status = status_of(error)
    if isinstance(error, LocalTokenNotFoundError):
        return (
            f"you are not logged in: make a token that may write at {endpoint()}/settings/tokens, "
            f"and log in with {LOG_IN}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"no {repo.type} at {repo.page} that you may see: check the spelling, or if it is "
            f"private, log in with {LOG_IN}"
        )
    if status == 401:
        return refused_token()
    if status == 402:
        return f"{endpoint()} wants to be paid for {repo.id}: see {endpoint()}/settings/billing"
    if status == 403:
        return (
            f"{endpoint()} forbids your token to write to {repo.id}: allow it at "
            f"{endpoint()}/settings/tokens, or see at {endpoint()}/settings/billing whether your "
            "private storage is full"
        )
    if status == 400:
        return f"{endpoint()} finds the files for {repo.id} wrong, as a card with bad metadata"
    if isinstance(error, OSError) and error.errno and not isinstance(error, OUTAGES):
        return f"a file for {repo.id} cannot be read or written ({error.strerror})"
    return None


def refused_token() -> str:
    """What to do about a token that is none, or no longer."""
    return (
        f"{endpoint()} does not accept your token: renew it with {LOG_IN}, "
        "or remove it with `hf auth logout`"
    )


def status_of(error: Exception) -> int | None:
    """The HTTP status that the Hub answered with, if it is that."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def reason(error: Exception) -> str:
    """A few words on an error, none of them the server's."""
    error = cause(error)
    if isinstance(error, HfHubHTTPError):
        return f"it answered {error.response.status_code}"
    if isinstance(error, NONSENSE):
        return "what answers there is no Hub, check HF_ENDPOINT"
    if type(error) is OSError:
        return "it was not as long as announced"
    return type(error).__name__


def cause(error: Exception) -> Exception:
    """What lies behind words of the client's, as "not in the cache either", or the error itself."""
    if isinstance(error.__cause__, Exception) and not isinstance(error, HTTPError):
        return cause(error.__cause__)
    return error


def endpoint() -> str:
    """The Hub's address, without a password that may be part of it."""
    return re.sub(r"//[^/]*@", "//", constants.ENDPOINT)
