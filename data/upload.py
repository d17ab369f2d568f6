"""Files written to a repo on the Hub: all of a commit or nothing, and harmless to repeat.

    open_repo("owner/name", private=True)                          # ours? then made if need be
    commit_files("owner/name", {"README.md": b"# Hello"}, "A card")

A commit is one request at the end. Before it the large files go to a store of their own; whoever
stops then has changed nothing that can be seen, and what the store has is not sent again.

huggingface_hub is given open files, one at a time: it then sends large ones by git-lfs and in the
caller's thread, where Ctrl-C ends it.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    constants,
    create_commit,
    create_repo,
    hf_hub_download,
    preupload_lfs_files,
    repo_info,
    set_client_factory,
    whoami,
)
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils._http import default_client_factory
from tqdm import tqdm

from data.bars import download_bars
from data.download import TROUBLE, is_intact, list_files, silent_client_log
from data.repo import Repo, endpoint, explain_writing, reason
from data.snapshot import HubError

LONGEST_SILENCE = 60.0  # seconds that a server may take to answer; the client itself has no limit


def open_repo(id: str, private: bool) -> None:
    """Makes sure that a repo is there and may be written, and makes it if it is not there.

    Args:
        id: `owner/name`.
        private: a new one is seen by its owner only, and one that all can see is refused.

    Raises:
        HubError: no token, one that may not write, somebody else's repo, a public one that should
            be private, or no network. Nothing was made then.
    """
    repo = repo_to_write(id)
    with asking(repo):
        check_owner(repo, whoami())
        try:
            found = repo_info(repo.id)
        except RepositoryNotFoundError:
            create_repo(repo.id, private=private)
        else:
            if found.id != repo.id:
                raise HubError(f"{repo.id} is called {found.id} now: give that name")
            if private and not found.private:
                raise HubError(
                    f"{repo.page} is public, and what is private must not go there: make it "
                    f"private at {repo.page}/settings, or give another name"
                )
        # How a file would have to be sent is only told to those who may send it.
        preupload_lfs_files(repo.id, [CommitOperationAdd("README.md", b"#")])


def check_owner(repo: Repo, account: Mapping[str, Any]) -> None:
    """Makes sure that a repo's owner is the user, or an organisation that the user may write for.

    Args:
        repo: whose name begins with the owner.
        account: what the Hub says of the token.

    Raises:
        HubError: it is somebody else, or the token can only read.
    """
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"your token can only read: make one that may write at {endpoint()}/settings/tokens, "
            "and log in with `hf auth login` or HF_TOKEN"
        )
    user = account["name"]
    groups = [
        group["name"] for group in account.get("orgs", ()) if group.get("roleInOrg") != "read"
    ]
    owner, _, name = repo.id.partition("/")
    if owner not in (user, *groups):
        also = f", or one of {', '.join(groups)}," if groups else ""
        raise HubError(f"{repo.id} is not yours: you are {user}{also}; write {user}/{name}")


def commit_files(
    id: str,
    files: Mapping[str, bytes | Path],
    message: str,
    delete: Collection[str] = (),
    *,
    show_progress: bool = False,
) -> str:
    """Adds files to a repo, and deletes others, in one commit; none if nothing would change.

    Args:
        id: `owner/name` of a repo that is there.
        files: contents, or files on disk, by their names in the repo.
        message: what the commit is called.
        delete: names of files, and of folders, which end in /. What is not there is left out, and
            what is in `files` stays.
        show_progress: whether to show a bar on stderr.

    Returns:
        The commit that the repo is at afterwards.

    Raises:
        HubError: it could not be done. The repo is then as it was, or the commit was made and only
            the answer is missing; in either case the same call may be repeated.
        OSError: a file on disk cannot be read.
    """
    repo = repo_to_write(id)
    with ExitStack() as stack:
        opened = {name: stack.enter_context(open_content(files[name])) for name in sorted(files)}
        with asking(repo):
            doomed = names_to_delete(list_files(repo)[1], delete) - files.keys() if delete else ()
            additions = [CommitOperationAdd(name, file) for name, file in opened.items()]
            send_large(repo, additions, show_progress)
            deletions = [CommitOperationDelete(name, is_folder=False) for name in sorted(doomed)]
            commit = create_commit(repo.id, [*additions, *deletions], commit_message=message)
    return commit.oid


def names_to_delete(present: Collection[str], delete: Collection[str]) -> set[str]:
    """Those of a repo's files that are named, or lie in a folder that is named with a / behind."""
    folders = tuple(name for name in delete if name.endswith("/"))
    return {name for name in present if name in delete or name.startswith(folders)}


def list_repo(id: str) -> tuple[str, dict[str, int | None]]:
    """The commit that a repo is at, and the sizes in bytes of its files, None where not announced.

    Raises:
        HubError: there is no such repo for us, or it cannot be asked.
    """
    repo = repo_to_write(id)
    with asking(repo):
        commit, files = list_files(repo)
        return commit, {name: file.size for name, file in files.items()}


def read_repo_file(id: str, commit: str, name: str) -> bytes:
    """The content of one file of a commit, as the Hub announced it; nothing is kept in the cache.

    Raises:
        HubError: it could not be had, or it is not what the Hub announced.
    """
    repo = Repo(repo_to_write(id).id, commit)
    with asking(repo), download_bars(lambda name, done, size: None):
        announced = list_files(repo)[1].get(name)
        if announced is None:
            raise HubError(f"{repo.page} has no {name} (commit {commit[:7]})")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(hf_hub_download(repo.id, name, revision=commit, cache_dir=folder))
            if is_intact(path, announced):
                return path.read_bytes()
    raise HubError(f"{name} of {repo.id} is not what {endpoint()} announced")


def repo_to_write(id: str) -> Repo:
    """The repo with this name. Raises HubError if it is no full name."""
    try:
        validate_repo_id(id)
    except HFValidationError:
        is_name = False
    else:
        is_name = "/" in id
    if not is_name:
        raise HubError(f"{id!r} is no name of a repository on the Hub: write owner/name")
    return Repo(id)


@contextmanager
def asking(repo: Repo) -> Iterator[None]:
    """A context in which the Hub is asked: it ends in time, prints nothing, raises our words only.

    Raises:
        HubError: for whatever goes wrong with the Hub in it.
    """
    if constants.is_offline_mode():
        raise HubError(f"HF_HUB_OFFLINE is set, so {repo.id} cannot be reached: unset it")
    limit_silence()
    # The Hub's own words on a card, which the client would print.
    warnings.filterwarnings("ignore", message="Warnings while validating metadata")
    try:
        with silent_client_log(), no_client_bars():
            yield
    except HubError:
        raise
    except (*TROUBLE, KeyError, TypeError, AttributeError) as error:
        refusal = explain_writing(error, repo) or (
            f"{repo.page} cannot be reached now ({reason(error)}): "
            "run the same command again, which does no harm"
        )
        raise HubError(refusal) from None


@cache
def limit_silence() -> None:
    """Makes every request of this process end, even if a server never answers."""

    def limit(request: Any) -> None:
        limits = request.extensions["timeout"].items()
        request.extensions["timeout"] = {name: time or LONGEST_SILENCE for name, time in limits}

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks["request"].append(limit)
        return made

    set_client_factory(client)


@contextmanager
def no_client_bars() -> Iterator[None]:
    """A context without huggingface_hub's progress bars, unless HF_HUB_DISABLE_PROGRESS_BARS is 0.

    For files that are in the store already it would show one that counts to zero.
    """
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


class OpenFile(io.BufferedReader):
    """A file on disk that tells how far it has been read."""

    moved: Callable[[int], object] | None = None

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if self.moved:
            self.moved(self.tell())
        return content


def open_content(content: bytes | Path) -> BinaryIO:
    """Something to read, for bytes or a file on disk."""
    if isinstance(content, bytes):
        return io.BytesIO(content)
    return OpenFile(io.FileIO(content))


def send_large(repo: Repo, additions: list[CommitOperationAdd], show_progress: bool) -> None:
    """Hands the large files to the Hub's store; the commit then only names them."""
    total = sum(addition.upload_info.size for addition in additions)
    with tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc=repo.id,
        disable=None if show_progress else True,
    ) as bar:
        for addition in additions:
            start, file = bar.n, addition.path_or_fileobj
            if isinstance(file, OpenFile):
                file.moved = lambda position, start=start: bar.update(start + position - bar.n)
            preupload_lfs_files(repo.id, [addition])
            bar.update(start + addition.upload_info.size - bar.n)
