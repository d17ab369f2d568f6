"""Files of a repo on the Hub, in the local cache: downloaded, checked, or found there.

A download goes through huggingface_hub into its ordinary cache, which other programs share:

    HF_HOME/hub/models--OWNER--NAME/
      blobs/        the contents, named after their hash
      snapshots/    COMMIT/FILE, links into blobs/
      refs/         BRANCH, a file that holds a commit; moved only when the next one is complete
      unfinished/   COMMIT, an empty file of ours that stands while it is downloaded and checked

What huggingface_hub says of an error or a retry repeats what a server answered, and that may echo
a token. So its log is silenced here, and every message is made of our own words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import DatasetInfo, ModelInfo, constants, hf_hub_download, repo_info
from huggingface_hub.errors import HTTPError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import logging as client_log

from data.bars import BAR
from data.repo import COMMIT, Repo, endpoint, explain, reason
from data.snapshot import HubError, Snapshot, content_hash

# HTTP and the network, the disk, hf_xet, and answers that make no sense.
TROUBLE = (HTTPError, OSError, RuntimeError, ValueError)

# Which files of a repo are wanted, out of the names of all its files. The second argument gives the
# local path of one of them, for a choice that depends on what is in it.
Choice = Callable[[Collection[str], Callable[[str], Path]], list[str]]


def fetch_repo(repo: Repo, choose: Choice) -> Snapshot:
    """The chosen files of a repo: from the Hub, or out of the cache where there is no Hub.

    Raises:
        HubError: the repo, a file of it, the access or the network is missing, or a file damaged.
    """
    if constants.is_offline_mode():
        return cached_snapshot(repo, choose, "HF_HUB_OFFLINE is set")
    with silent_client_log():
        try:
            commit, files = list_files(repo)
        except (*TROUBLE, KeyError, TypeError) as error:
            if refusal := explain(error, repo):
                raise HubError(refusal) from None
            unreachable = f"{endpoint()} cannot be reached ({reason(error)})"
        else:
            return downloaded_snapshot(repo, choose, commit, files)
    snapshot = cached_snapshot(repo, choose, unreachable)
    print(f"{unreachable}: using {repo.id} as it is in the cache", file=sys.stderr)
    return snapshot


def list_files(repo: Repo) -> tuple[str, dict[str, RepoSibling]]:
    """The commit that the revision stands for now, and what the Hub announces of its files."""
    info = repo_info(
        repo.id,
        repo_type=repo.type,
        revision=repo.revision,
        files_metadata=True,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    assert isinstance(info, ModelInfo | DatasetInfo)
    if not COMMIT.fullmatch(info.sha or "") or info.siblings is None:
        raise ValueError("an answer without a commit or without files")
    return str(info.sha), {file.rfilename: file for file in info.siblings}


def downloaded_snapshot(
    repo: Repo, choose: Choice, commit: str, files: dict[str, RepoSibling]
) -> Snapshot:
    """The chosen files of a commit, downloaded and checked where the cache lacks them.

    What the cache has in the right size is trusted, so that a start costs no hashing; after a run
    that was cut short every file is hashed.
    """
    unfinished = repo.unfinished(commit)
    was_cut_short = unfinished.exists()

    def obtain(name: str) -> Path:
        path = repo.snapshot(commit) / name
        if was_cut_short or not has_size(path, files[name].size):
            download(repo, commit, files[name])
        return path

    wanted = choose(files, obtain)
    if missing := [name for name in wanted if name not in files]:
        raise HubError(
            f"{repo.page} has no {missing[0]} (commit {commit[:7]}): "
            "it cannot be used without, choose another one"
        )
    for name in wanted:
        obtain(name)
    unfinished.unlink(missing_ok=True)
    remember(repo, commit)
    return Snapshot(repo.snapshot(commit), repo.id, commit)


def download(repo: Repo, commit: str, file: RepoSibling) -> None:
    """Puts one file into the cache, unless an intact one is there, and checks it.

    One at a time and in the caller's thread, because Ctrl-C would not stop another thread.

    Raises:
        HubError: it could not be had, or it is not what the Hub announced.
    """
    path, unfinished = repo.snapshot(commit) / file.rfilename, repo.unfinished(commit)
    is_there = path.exists()
    if is_there and is_intact(path, file):
        return
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        if not repo.ref.exists():
            remember(repo, commit)
        if is_there:
            remove_from_cache(path)
        hf_hub_download(
            repo.id,
            file.rfilename,
            repo_type=repo.type,
            revision=commit,
            tqdm_class=BAR.get(),
        )
    except TROUBLE as error:
        refusal = explain(error, repo) or (
            f"the download of {file.rfilename} from {endpoint()} broke off ({reason(error)}): "
            "run the same command again, finished files are kept"
        )
        raise HubError(refusal) from None
    if not is_intact(path, file):
        remove_from_cache(path)
        raise HubError(
            f"{file.rfilename} of {repo.id} is not what {endpoint()} announced and was deleted: "
            "run the same command again; if that does not help, a proxy or mirror damages files"
        )


def remember(repo: Repo, commit: str) -> None:
    """Notes in the cache which commit the revision is, for when the Hub cannot be asked."""
    is_noted = repo.ref.exists() and repo.ref.read_text() == commit
    if commit != repo.revision and not is_noted:
        repo.ref.parent.mkdir(parents=True, exist_ok=True)
        repo.ref.write_text(commit)


def has_size(path: Path, size: int | None) -> bool:
    """Whether there is such a file, of the announced size in bytes if one was announced."""
    return path.is_file() and size in (None, path.stat().st_size)


def is_intact(path: Path, file: RepoSibling) -> bool:
    """Whether a file on disk is the one that the Hub announced.

    A large file is announced with its sha256 (git-lfs), any other with git's own hash of a blob.
    """
    if not has_size(path, file.size):
        return False
    announced = file.lfs.sha256 if file.lfs else file.blob_id
    return not announced or content_hash(path, by_git=not file.lfs) == announced


def remove_from_cache(path: Path) -> None:
    """Removes a file of a snapshot, if it is there, with the blob that its links lead to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def cached_snapshot(repo: Repo, choose: Choice, why: str) -> Snapshot:
    """The chosen files of a repo as the cache has them; nothing here touches the network.

    Raises:
        HubError: they are not all there. It begins with `why` we cannot ask the Hub.
    """
    flag = "--model" if repo.type == constants.REPO_TYPE_MODEL else "--data"
    without = f"train.py --demo, {flag} demo and {flag} FOLDER"
    what_works = f"run it once with a connection; {without} need none"
    commit = repo.revision
    if not COMMIT.fullmatch(commit) and repo.ref.is_file():
        commit = repo.ref.read_text().strip()
    folder = repo.snapshot(commit)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not names:
        raise HubError(
            f"{why}, and {repo.id} (revision {repo.revision}) is not in the cache "
            f"{constants.HF_HUB_CACHE}: {what_works}"
        )
    missing = [name for name in choose(names, folder.joinpath) if name not in names]
    if missing or repo.unfinished(commit).exists():
        lack = f"{missing[0]} is missing" if missing else "its last download was not finished"
        raise HubError(
            f"{why}, and {repo.id} is not complete in the cache {folder} ({lack}): {what_works}"
        )
    return Snapshot(folder, repo.id, commit)


@contextmanager
def silent_client_log() -> Iterator[None]:
    """Holds back huggingface_hub's log up to warnings, which repeat what servers answered."""
    level = client_log.get_verbosity()
    client_log.set_verbosity_error()
    try:
        yield
    finally:
        client_log.set_verbosity(level)
