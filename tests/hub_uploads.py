"""The write side of hub_server.py's imitation of the Hub.

Answered is what huggingface_hub 2.4.0 sends when it uploads without hf_xet:

    whoami    GET  /api/whoami-v2
    info      GET  /api/models/ID
    create    POST /api/repos/create
    yaml      POST /api/validate-yaml
    preupload POST /api/models/ID/preupload/main      which files are large?
    batch     POST /ID.git/info/lfs/objects/batch     where to? nowhere, if they are there
    put       PUT  to the other host, whole or in parts; then "complete" for parts, and "verify"
    commit    POST /api/models/ID/commit/main         a JSON object a line

A fault stops one of these, as often as it says.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from hub_files import LARGE_FILES, File, git_hash

ID = r"(?P<id>[^/]+/[^/]+)"
ROUTES = {
    "create": re.compile(r"/api/repos/create"),
    "yaml": re.compile(r"/api/validate-yaml"),
    "preupload": re.compile(rf"/api/models/{ID}/preupload/main"),
    "commit": re.compile(rf"/api/models/{ID}/commit/main"),
    "batch": re.compile(rf"/{ID}\.git/info/lfs/objects/batch"),
    "verify": re.compile(r"/lfs/verify"),
    "complete": re.compile(r"/lfs/complete"),
    "put": re.compile(r"/lfs/[0-9a-f]{64}(?:/\d+)?"),
}
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
LICENSES = {"apache-2.0", "mit", "llama3.2", "other", "cc-by-4.0", "cc-by-sa-3.0", "openrail"}
RELATIONS = {"adapter", "merge", "quantized", "finetune"}


@dataclass
class Account:
    """Whose token it is, and what it allows."""

    name: str
    role: str = "write"  # or "read", or "fineGrained"
    orgs: tuple[tuple[str, str], ...] = ()  # name and role in it
    may_write: bool = True  # what a fine-grained token does not say of itself


@dataclass
class WriteFault:
    """What goes wrong with a request.

    Attributes:
        status: it is refused with this status.
        cut: the connection ends "before" the request has done anything, or "after".
        hang: it is never answered, and does nothing.
        times: only so often; -1 is always.
        then: is called when the request has done what it does, and before it is answered.
    """

    status: int | None = None
    cut: str | None = None
    hang: bool = False
    times: int = 1
    then: Callable[[], object] = bool


class Uploads:
    """Answers for those who write; a part of hub_server's Handler."""

    hub: Any
    host: str

    def do_POST(self) -> None:
        self.receive()

    def do_PUT(self) -> None:
        self.receive()

    def receive(self) -> None:
        """Reads a request and does what it asks for."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        for name, route in ROUTES.items():
            if found := route.fullmatch(path):
                act = functools.partial(self.write, name, body, **found.groupdict())
                return self.with_fault(name, act)
        return self.answer(404, message="Not found")

    def with_fault(self, name: str, act: Callable[[], None]) -> None:
        """Does it, unless it is to go wrong; what has no answer is recorded with status 0."""
        fault = next((f for f in self.hub.write_faults.get(name, []) if f.times), None)
        if fault is None:
            return act()
        fault.times -= 1
        if fault.status:
            fault.then()
            return self.answer(fault.status, message="Broken on purpose.")
        if fault.cut == "after":
            wfile, self.wfile = self.wfile, open("/dev/null", "wb")  # noqa: SIM115
            act()
            self.wfile.close()
            self.wfile = wfile
        else:
            self.record(0)
        fault.then()  # last: whoever waits for it finds what the request has done
        if fault.hang:
            self.hub.stopped.wait()
        self.close_connection = True
        return None

    def write(self, name: str, body: bytes, id: str | None = None) -> None:
        """Answers, if the token allows it."""
        if name in ("put", "complete"):  # their addresses are secret, and signed
            return getattr(self, name)(body)
        account = self.hub.accounts.get(self.token())
        if account is None:
            return self.answer(401, message="Invalid credentials in Authorization header")
        if name in ("yaml", "create", "verify"):
            return getattr(self, name)(account, json.loads(body))
        if f"models/{id}" not in self.hub.refs:
            return self.answer(404, code="RepoNotFound", message="Repository not found")
        if not may_write(account, str(id).partition("/")[0]):
            return self.answer(403, message="Forbidden: pass `create_pr=1` as a query parameter")
        return getattr(self, name)(str(id), body)

    def whoami(self) -> None:
        """Who the token is."""
        account = self.hub.accounts.get(self.token())
        if account is None:
            return self.answer(401, message="Invalid credentials in Authorization header")
        orgs = [{"name": name, "roleInOrg": role} for name, role in account.orgs]
        token = {"displayName": "a token", "role": account.role}
        auth = {"type": "access_token", "accessToken": token}
        return self.send({"type": "user", "name": account.name, "orgs": orgs, "auth": auth})

    def create(self, account: Account, wish: dict[str, Any]) -> None:
        """Makes a repo, with a first commit."""
        owner = wish["organization"] or account.name
        id = f"{owner}/{wish['name']}"
        if not may_write(account, owner):
            words = f'You don\'t have the rights to create a model under the namespace "{owner}"'
            return self.answer(403, message=words)
        if f"models/{id}" in self.hub.refs:
            body = {"error": "You already created this model repo", "url": f"{self.hub.url}/{id}"}
            return self.send(body, status=409)
        if wish.get("visibility") == "private":
            self.hub.private.add(id)
        self.hub.commit(id, {".gitattributes": self.hub.keep(b"*.safetensors filter=lfs\n")})
        return self.send({"url": f"{self.hub.url}/{id}", "name": id})

    def yaml(self, account: Account, wish: dict[str, Any]) -> None:
        """Looks at a card's front matter."""
        errors = front_matter_errors(wish["content"])
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        return self.send(answer, status=400 if errors else 200)

    def preupload(self, id: str, body: bytes) -> None:
        """Says which files are large, and which are there already."""
        present = self.hub.files[self.hub.refs[f"models/{id}"]["main"]]
        files = []
        for file in json.loads(body)["files"]:
            name, sample = file["path"], base64.b64decode(file["sample"])
            is_large = name.endswith(LARGE_FILES) or file["size"] > 10 * 2**20 or b"\0" in sample
            old = present.get(name)
            oid = {"oid": old.sha256 or old.blob_id} if old else {}
            mode = "lfs" if is_large else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False} | oid)
        return self.send({"files": files})

    def batch(self, id: str, body: bytes) -> None:
        """Says where large files shall go; those that are in the store need not go anywhere."""
        objects = []
        for wanted in json.loads(body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if not self.hub.stored(oid).exists():
                upload: dict[str, Any] = {"href": f"{self.hub.cdn_url}/lfs/{oid}?X-Amz-Signature=1"}
                if part := self.hub.part_size:
                    parts = range(-(-size // part))
                    urls = {str(i + 1): f"{self.hub.cdn_url}/lfs/{oid}/{i}" for i in parts}
                    upload = {
                        "href": f"{self.hub.url}/lfs/complete?oid={oid}",
                        "header": {"chunk_size": str(part)} | urls,
                    }
                verify = {"href": f"{self.hub.url}/lfs/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        return self.send({"transfer": "basic", "objects": objects})

    def put(self, body: bytes) -> None:
        """Takes a large file or a part of one; it is only kept if its hash is right."""
        assert self.host == "cdn"
        assert not self.token(), "the store got the Hub's token"
        oid, _, part = urlsplit(self.path).path.removeprefix("/lfs/").partition("/")
        if part:
            self.hub.stored(f"{oid}.{part}").write_bytes(body)
        elif hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, message="BadDigest")
        else:
            self.hub.stored(oid).write_bytes(body)
        return self.answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, body: bytes) -> None:
        """Puts the parts together."""
        (oid,) = parse_qs(urlsplit(self.path).query)["oid"]
        pieces = [
            self.hub.stored(f"{oid}.{i}").read_bytes()
            for i in range(len(json.loads(body)["parts"]))
        ]
        content = b"".join(pieces)
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400, message="BadDigest")
        self.hub.stored(oid).write_bytes(content)
        return self.send({})

    def verify(self, account: Account, wish: dict[str, Any]) -> None:
        """Confirms that a large file has arrived."""
        file = self.hub.stored(wish["oid"])
        is_there = file.exists() and file.stat().st_size == wish["size"]
        return self.send({}) if is_there else self.answer(404, message="no such object")

    def commit(self, id: str, body: bytes) -> None:
        """Makes a commit out of its lines, or changes nothing."""
        files = dict(self.hub.files[self.hub.refs[f"models/{id}"]["main"]])
        lines = [json.loads(line) for line in body.splitlines()]
        assert [line["key"] for line in lines].index("header") == 0
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            name = value["path"]
            if key == "file":
                files[name] = self.hub.keep(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                stored = self.hub.stored(value["oid"])
                if not stored.exists():
                    return self.answer(400, message="Your push was rejected: a pointer to nothing")
                files[name] = File.large(stored, stored.read_bytes())
            else:
                gone = [old for old in files if old == name or old.startswith(f"{name}/")]
                if key == "deletedFolder":
                    gone = [old for old in files if old.startswith(f"{name.rstrip('/')}/")]
                if not gone:
                    words = "A file with this name doesn't exist"
                    return self.answer(404, code="EntryNotFound", message=words)
                for old in gone:
                    del files[old]
        oid = self.hub.commit(id, files, lines[0]["value"]["summary"])
        url = f"{self.hub.url}/{id}/commit/{oid}"
        return self.send({"commitUrl": url, "commitOid": oid, "pullRequestUrl": None})

    def send(self, body: dict[str, Any], status: int = 200) -> None:
        """Answers with JSON."""
        self.answer(status, json.dumps(body).encode())


def may_write(account: Account, owner: str) -> bool:
    """Whether a token allows to write for an owner of repos."""
    owners = [account.name, *(name for name, role in account.orgs if role != "read")]
    return account.role != "read" and account.may_write and owner in owners


def front_matter_errors(card: str) -> list[str]:
    """What the Hub finds wrong with a card's metadata; these are those of its rules we touch."""
    found = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    if not found:
        return []
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(data, dict):
        return ["not a mapping"]
    errors = []
    if data.get("license", "mit") not in LICENSES:
        errors.append(f'"license" must be one of {LICENSES}')
    if data.get("base_model_relation", "adapter") not in RELATIONS:
        errors.append('"base_model_relation" must be one of ...')
    for field in ("base_model", "datasets", "tags"):
        values = data.get(field, [])
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or (field != "tags" and not HUB_ID.fullmatch(value)):
                errors.append(f'"{field}" with value {value!r} is not valid')
    return errors


def commit_id(id: str, files: dict[str, File], summary: str, number: int) -> str:
    """A name for a commit, different for each."""
    listing = [f"{name} {file.blob_id}" for name, file in sorted(files.items())]
    return git_hash("\n".join([id, summary, str(number), *listing]).encode())
