"""A small imitation of the Hub on 127.0.0.1, for tests that download with the real client.

    from hub_server import hub

    with hub({"owner/name": folder}) as server:
        subprocess.run(
            [sys.executable, "chat.py", "ask", "Hi", "--model", "owner/name"],
            env=server.environment(tmp_path / "home"),
        )
    assert not server.asked_for("pytorch_model.bin")

It answers what huggingface_hub 2.4.0 asks when it downloads: /api/models/ID/revision/REV and
/tree/REV, /ID/resolve/REV/FILE with HEAD, GET and ranges, the same under datasets/, and the Hub's
refusals with its headers. As on the Hub, large files are redirected to another host, the "CDN": a
second server on another port. There is no xet. What is written is up to hub_uploads.py. Everything
that was asked is recorded, and faults can be switched on while it runs.

The Hub's ways were taken from huggingface_hub's source (which headers it reads, and what it makes
of them) and from the errors that users of gated models have posted.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from hub_files import File, git_hash, sibling, tree_entry
from hub_uploads import Account, Uploads, WriteFault, commit_id

ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
API = re.compile(
    rf"/api/(?P<kind>models|datasets)/{ID}(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?"
)
RESOLVE = re.compile(rf"/(?:(?P<kind>datasets)/)?{ID}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Fault:
    """What goes wrong when a file is sent.

    Attributes:
        cut_after: break the connection after so many bytes of the body.
        hang_after: send nothing more after so many bytes of the body.
        flip_byte: send the byte at this position with one bit turned.
        lengthen: add so many bytes, or leave them off if negative, and Content-Length agrees.
        status: answer with this status instead.
        only_ranges: all this only to a GET for a range, as of a client who resumes.
        times: only so often; -1 is always.
    """

    cut_after: int | None = None
    hang_after: int | None = None
    flip_byte: int | None = None
    lengthen: int = 0
    status: int | None = None
    only_ranges: bool = False
    times: int = -1


NONE = Fault(times=0)


@dataclass(frozen=True)
class Request:
    """A request that arrived, and the status it was answered with."""

    host: str  # "hub" or "cdn"
    method: str
    path: str
    headers: Message
    status: int


@dataclass
class Hub:
    """The state of the imitation; tests set what they need while it runs.

    Attributes:
        url: the address for HF_ENDPOINT.
        cdn_url: the address of the other host.
        refs: by "models/ID" or "datasets/ID": which commit a branch, tag or commit stands for.
        files: by commit, then by name.
        requests: what was asked so far; clear() it at will.
        tokens: the valid ones, and the ids of gated and private repos that each opens.
        gated: ids whose files need such a token.
        gated_api: so does their listing.
        private: ids that do not exist for those without such a token.
        renamed: old ids, and the new ones that they are redirected to.
        faults: by file name; a request meets the first that is meant for it and not used up.
        cdn: whether large files come from the other host, or from the Hub's own, as of a mirror.
        down: a status that everything is answered with, such as 503.
        stalls: nothing is ever answered.
        nonsense: everything is answered with a web page, as by the login of a hotel's network.
        moved_to: the address of another Hub that everything is redirected to, as by a mirror.
        echoes_token: answers repeat the request's token wherever a client may print it.
        accounts: whose each token is that may write.
        write_faults: by the names of hub_uploads.ROUTES, "whoami" and "info"; the first that is not
            used up counts.
        part_size: bytes; large files are taken in parts of this size. 0 for whole ones.
        cards: by "models/ID" or "datasets/ID", the metadata of its card.
        store: where what was uploaded is kept.
    """

    url: str = ""
    cdn_url: str = ""
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, dict[str, File]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    gated_api: bool = False
    private: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    cdn: bool = True
    down: int | None = None
    stalls: bool = False
    nonsense: bool = False
    moved_to: str | None = None
    echoes_token: bool = False
    accounts: dict[str, Account] = field(default_factory=dict)
    write_faults: dict[str, list[WriteFault]] = field(default_factory=dict)
    part_size: int = 0
    cards: dict[str, dict[str, object]] = field(default_factory=dict)
    store: Path = Path()
    stopped: threading.Event = field(default_factory=threading.Event)

    def publish(
        self, id: str, folder: Path, *, kind: str = "models", revisions: tuple[str, ...] = ("main",)
    ) -> str:
        """Puts a folder's files under a commit of their own, and lets the revisions mean it.

        The folder must stay as it is; publish a changed copy of it for another commit.

        Returns:
            The commit.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): File.of(path) for path in paths}
        listing = [f"{name} {file.blob_id}" for name, file in files.items()]
        commit = git_hash("\n".join([id, *listing]).encode())
        self.files[commit] = files
        self.refs.setdefault(f"{kind}/{id}", {}).update(dict.fromkeys((commit, *revisions), commit))
        return commit

    def stored(self, name: str) -> Path:
        """Where an uploaded file of this hash is, or would be."""
        return self.store / name

    def keep(self, content: bytes) -> File:
        """Stores a small file."""
        path = self.stored(git_hash(content))
        path.write_bytes(content)
        return File(path, len(content), path.name, None)

    def commit(self, id: str, files: dict[str, File], summary: str = "initial commit") -> str:
        """Makes a model's branch main hold these files; returns the commit."""
        commit = commit_id(id, files, summary, len(self.files))
        self.files[commit] = files
        self.refs.setdefault(f"models/{id}", {}).update({"main": commit, commit: commit})
        return commit

    def content(self, id: str) -> dict[str, bytes]:
        """What a model's branch main holds."""
        files = self.files[self.refs[f"models/{id}"]["main"]]
        return {name: file.path.read_bytes() for name, file in files.items()}

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The variables of a child process with this Hub, a cache of its own and no token."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
        }
        return inherited | {"HF_ENDPOINT": self.url, "HF_HOME": str(home)} | more

    def asked_for(self, part: str, method: str = "GET") -> list[Request]:
        """The requests so far with a text in their path."""
        return [r for r in self.requests if r.method == method and part in r.path]


class Handler(Uploads, BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    host: str

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: requests are recorded instead."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.hub.stalls:
            self.hub.stopped.wait()
            self.close_connection = True
        elif self.hub.down:
            self.answer(self.hub.down, message="The Hub is down.")
        elif self.hub.nonsense:
            self.answer(200, b"<html>Room number?</html>", {"Content-Type": "text/html"})
        elif self.hub.moved_to:
            self.answer(308, headers={"Location": self.hub.moved_to + self.path})
        elif self.host == "cdn":
            commit, name = unquote(path)[1:].split("/", 1)
            self.send_file(name, self.hub.files[commit][name], {})
        elif path == "/api/whoami-v2":
            self.with_fault("whoami", self.whoami)
        elif found := RESOLVE.fullmatch(path) or API.fullmatch(path):
            asked = {"what": "file", "file": ""} | found.groupdict()
            kind = "info" if not asked["file"] else "file"
            self.with_fault(kind, lambda: self.route(path, **asked))
        else:
            self.answer(404, message="Not found")

    def route(
        self, path: str, kind: str | None, id: str, what: str, revision: str | None, file: str
    ) -> None:
        """Answers for a repo: whether it may be seen, its listing, or one of its files."""
        repo = f"{kind or 'models'}/{id}"
        if id in self.hub.renamed:
            new = path.replace(id, self.hub.renamed[id], 1)
            return self.answer(307, headers={"Location": new})
        if not self.may_read(repo, id, is_file=bool(file)):
            return None
        commit = self.hub.refs[repo].get(unquote(revision or "main"))
        if commit is None:
            return self.answer(404, code="RevisionNotFound", message=f"Invalid rev id: {revision}")
        if file:
            return self.resolve(commit, unquote(file))
        files = self.hub.files[commit].items()
        if what == "tree":
            return self.answer(200, json.dumps([tree_entry(*file) for file in files]).encode())
        info = {"id": id, "sha": commit, "siblings": [sibling(*file) for file in files]}
        info |= {"private": id in self.hub.private, "cardData": self.hub.cards.get(repo)}
        return self.answer(200, json.dumps(info).encode())

    def may_read(self, repo: str, id: str, is_file: bool) -> bool:
        """Whether the request's token opens a repo; if not, it is refused in the Hub's way."""
        token = self.token()
        account = self.hub.accounts.get(token)
        is_allowed = id in self.hub.tokens.get(token, ()) or (
            account is not None and id.startswith(f"{account.name}/")
        )
        if token and token not in self.hub.tokens and account is None:
            self.answer(401, message="Invalid credentials in Authorization header")
        elif repo not in self.hub.refs or (id in self.hub.private and not is_allowed):
            if token:
                self.answer(404, code="RepoNotFound", message="Repository not found")
            else:
                self.answer(401, code="RepoNotFound", message="Invalid username or password.")
        elif id in self.hub.gated and (is_file or self.hub.gated_api) and not is_allowed:
            message = f"Access to model {id} is restricted."
            self.answer(403 if token else 401, code="GatedRepo", message=message)
        else:
            return True
        return False

    def resolve(self, commit: str, name: str) -> None:
        """Answers with a file, or, if it is a large one, with where it lies."""
        file = self.hub.files[commit].get(name)
        head = {"X-Repo-Commit": commit}
        if file is None:
            return self.answer(404, code="EntryNotFound", message="Entry not found", headers=head)
        if file.sha256:
            head |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            if self.hub.cdn:
                head["Location"] = f"{self.hub.cdn_url}/{commit}/{quote(name)}?signature=1"
                return self.answer(302, headers=head)
        return self.send_file(name, file, head)

    def send_file(self, name: str, file: File, head: dict[str, str]) -> None:
        """Sends a file's bytes, or the range that was asked for, with the fault it is to have."""
        fault = self.take_fault(name)
        if fault.status:
            return self.answer(fault.status, message="Broken on purpose.")
        content = bytearray(file.path.read_bytes())
        if fault.flip_byte is not None:
            content[fault.flip_byte] ^= 1
        content = content[: len(content) + fault.lengthen] + bytes(max(fault.lengthen, 0))
        head |= {
            "ETag": f'"{file.sha256 or file.blob_id}"',
            "Accept-Ranges": "bytes",
            "Content-Disposition": f'inline; filename="{name}";',
        }
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, bytes(content), head, fault=fault)
        start = int(asked[1])
        if start >= len(content):
            return self.answer(416, headers={"Content-Range": f"bytes */{len(content)}"})
        head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206, bytes(content[start:]), head, fault=fault)

    def take_fault(self, name: str) -> Fault:
        """The fault that this request for a file meets."""
        for fault in self.hub.faults.get(name, []):
            is_meant = self.command == "GET" and ("Range" in self.headers or not fault.only_ranges)
            if is_meant and fault.times:
                fault.times -= 1
                return fault
        return NONE

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        code: str | None = None,
        message: str | None = None,
        fault: Fault = NONE,
    ) -> None:
        """Sends one response and records the request."""
        self.record(status)
        head = {"Content-Type": "application/json", **(headers or {})}
        if self.hub.echoes_token and self.token():
            message = f"{message or 'Hello'}: {self.headers['Authorization']}"
            head["X-HF-Warning"] = f"token; you sent {self.token()}"
            head["X-Request-Id"] = self.token()
        if code:
            head["X-Error-Code"] = code
        if message:
            head["X-Error-Message"] = message
            body = body or json.dumps({"error": message}).encode()
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            stop_after = fault.cut_after if fault.hang_after is None else fault.hang_after
            self.wfile.write(body[:stop_after])
            self.close_connection = stop_after is not None
        if fault.hang_after is not None:
            self.hub.stopped.wait()

    def record(self, status: int) -> None:
        """Notes the request and its answer."""
        self.hub.requests.append(Request(self.host, self.command, self.path, self.headers, status))

    def token(self) -> str:
        """The token that came with the request, or nothing."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")


@contextmanager
def hub(
    models: Mapping[str, Path] | None = None, datasets: Mapping[str, Path] | None = None
) -> Iterator[Hub]:
    """A Hub that serves folders under their ids until the end of the with block."""
    store = tempfile.TemporaryDirectory()
    state = Hub(store=Path(store.name))
    for kind, repos in (("models", models), ("datasets", datasets)):
        for id, folder in (repos or {}).items():
            state.publish(id, folder, kind=kind)
    servers = []
    for host in ("hub", "cdn"):
        handler = type("Handler", (Handler,), {"hub": state, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    state.url, state.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield state
    finally:
        state.stopped.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        store.cleanup()
