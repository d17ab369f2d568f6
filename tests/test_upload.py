"""Writing to the Hub: what is sent and what is refused.

With the real huggingface_hub client against the small Hub of hub_server.py; about 15 seconds.
"""

from __future__ import annotations

import pytest
from hub_server import Fault
from hub_uploads import Account, WriteFault
from uploads import CONTENT, IT, TOKEN, Uploader, content, sent


@pytest.mark.parametrize("part_size", [0, 10_000], ids=["whole", "parts"])
def test_a_commit_holds_exactly_the_files(part_size, alice, alices_hub, some_files, tmp_path):
    """And can be read again.

    Seen to fail when files went into the shared cache, and when hf_xet sent them.
    """
    alices_hub.part_size = part_size
    alice.open(IT)
    oid = alice.commit(IT, some_files)
    assert content(alices_hub, IT) == CONTENT and IT in alices_hub.private
    listed, sizes = alice("list_repo", id=IT)
    assert oid == listed == alices_hub.refs["models/alice/it"]["main"]
    assert sizes == {name: len(data) for name, data in alices_hub.content(IT).items()}
    for name in ("README.md", "x.bin"):
        assert alice("read_repo_file", id=IT, commit=oid, name=name).encode() == CONTENT[name]
    missing = alice.refusal("read_repo_file", id=IT, commit=oid, name="no")
    assert missing == f"{alices_hub.url}/alice/it has no no (commit {oid[:7]})"
    assert not list((tmp_path / "home").rglob("README.md"))
    assert len(sent(alices_hub)) == (8 + 1 if part_size else 2)


def test_repeating_sends_nothing_and_makes_no_commit(alice, alices_hub, some_files):
    """Seen to fail when the Hub was asked to delete what was gone, and when a bar was shown."""
    alice.open(IT)
    first = alice.commit(IT, some_files)
    assert alice.commit(IT, some_files) == first and len(sent(alices_hub)) == 2
    assert alice.commit(IT, {"step-1/a": "1"}, "nothing", "no/folder/") == first
    alice.open("lab/other")
    alice.commit("lab/other", some_files)
    assert len(sent(alices_hub)) == 2  # the store of this Hub is one for all


def test_folders_and_files_are_deleted_in_the_same_commit(alice, alices_hub, some_files):
    """What is also added stays.

    Seen to fail when it was deleted, and when another folder was whose name only begins alike.
    """
    alice.open(IT)
    more = {"step-10/a": "10", "old": "1", "kept/a": "old", "kept/b": "old"}
    before = alice.commit(IT, some_files | more)
    added = {"kept/a": "new", "step-2/a": "2"}
    after = alice.commit(IT, added, "step-1/", "old", "kept/", "model.safetensors")
    expected = CONTENT | {"step-10/a": b"10", "kept/a": b"new", "step-2/a": b"2"}
    del expected["step-1/a"], expected["model.safetensors"]
    assert content(alices_hub, IT) == expected
    assert [*alices_hub.files][1:] == [before, after]  # the first is the Hub's own


ACCOUNTS = {
    "read-only": (Account("alice", "read"), "your token can only read: make one that may write at"),
    "fine-grained": (
        Account("alice", "fineGrained", may_write=False),
        "forbids your token to write to alice/it: allow it at ",
    ),
    "nobody": (None, "does not accept your token: renew it with `hf auth login` or HF_TOKEN"),
}
NAMES = {
    "bob/it": "bob/it is not yours: you are alice, or one of lab,; write alice/it",
    "club/it": "club/it is not yours: you are alice, or one of lab,; write alice/it",
    "it": "'it' is no name of a repository on the Hub: write owner/name",
    "alice/i t": "'alice/i t' is no name of a repository on the Hub: write owner/name",
    "alice/it@main": "'alice/it@main' is no name of a repository on the Hub: write owner/name",
    "alice/public": "is public, and what is private must not go there: make it private at ",
    "alice/old": "alice/old is called alice/new now: give that name",
}


def test_what_cannot_be_written_is_refused_and_nothing_made(alice, alices_hub):
    """In one line without the token.

    Seen to fail when an organisation's readers were let in, when the owner was not looked at (the
    client itself takes somebody else's repo for ours), and when a token that says nothing of what
    it allows was not tried.
    """
    alices_hub.echoes_token = True
    for there in ("bob/it", "alice/public", "alice/new"):
        alices_hub.commit(there, {})
    alices_hub.renamed["alice/old"] = "alice/new"
    before = {repo: dict(refs) for repo, refs in alices_hub.refs.items()}
    for name, words in NAMES.items():
        assert words in alice.refusal("open_repo", id=name, private=True)
    for account, words in ACCOUNTS.values():
        owner = alices_hub.accounts.pop(TOKEN)
        alices_hub.accounts |= {TOKEN: account} if account else {}
        assert words in alice.refusal("open_repo", id=IT, private=True)
        assert words.replace(IT, "alice/new") in alice.refusal(
            "open_repo", id="alice/new", private=False
        )
        alices_hub.accounts[TOKEN] = owner
    alices_hub.write_faults["create"] = [WriteFault(status=402)]
    assert "wants to be paid for alice/it" in alice.refusal("open_repo", id=IT, private=True)
    assert alices_hub.refs == before


def test_no_token_and_no_hub_are_refused(alice, alices_hub, tmp_path):
    alice.environment = {"HF_TOKEN": ""}
    words = (
        f"you are not logged in: make a token that may write at {alices_hub.url}/settings/tokens"
    )
    assert words in alice.refusal("open_repo", id=IT, private=True)
    alice.environment = {"HF_TOKEN": TOKEN}
    alices_hub.nonsense = True
    words = "cannot be reached now (what answers there is no Hub, check HF_ENDPOINT): run the same"
    assert words in alice.refusal("list_repo", id=IT)
    alices_hub.nonsense, alices_hub.down = False, 503
    assert "cannot be reached now (it answered 503)" in alice.refusal("list_repo", id=IT)
    with Uploader(alices_hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9") as lonely:
        words = "http://127.0.0.1:9/alice/it cannot be reached now (ConnectError): run the same"
        assert words in lonely.refusal("open_repo", id=IT, private=True)
    alice.environment = {"HF_HUB_OFFLINE": "1"}
    words = "HF_HUB_OFFLINE is set, so alice/it cannot be reached: unset it"
    assert alice.refusal("open_repo", id=IT, private=True) == words
    assert not alices_hub.refs


def test_a_stored_token_is_used_and_never_shown(alices_hub, some_files, tmp_path):
    """Not even by a Hub that repeats it everywhere; and the store never gets it.

    Seen to fail when the client's log was not silent, and when our error had its error for a cause.
    """
    (tmp_path / "token").write_text(TOKEN)
    alices_hub.echoes_token = True
    alices_hub.write_faults = {"preupload": [WriteFault(503)], "commit": [WriteFault(500)]}
    with Uploader(alices_hub, tmp_path, HF_TOKEN="") as alice:
        alice.open("lab/it", private=False)
        arguments = {"id": "lab/it", "files": some_files, "message": "Some"}
        assert "it answered 500" in alice.refusal("commit_files", **arguments)
        alice("commit_files", **arguments)
    assert content(alices_hub, "lab/it") == CONTENT and "lab/it" not in alices_hub.private
    put = alices_hub.asked_for("/lfs/", "PUT")
    assert put and not [request for request in put if request.headers["Authorization"]]


def test_a_repo_that_is_gone_and_a_card_that_is_wrong_are_one_line(alice, alices_hub):
    bad_card = {"README.md": "---\nlicense: none-such\n---\n"}
    gone = alice.refusal("commit_files", id=IT, files=bad_card, message="Some")
    assert gone.startswith(
        f"no model at {alices_hub.url}/alice/it that you may see: check the spelling"
    )
    alice.open(IT)
    bad = alice.refusal("commit_files", id=IT, files=bad_card, message="Some")
    assert bad.startswith(
        f"{alices_hub.url} finds the files for alice/it wrong, as a card with bad metadata"
    )
    assert content(alices_hub, IT) == {}


def test_a_damaged_download_is_not_believed(alice, alices_hub, some_files):
    """Seen to fail when the hash was not compared."""
    alice.open(IT)
    oid = alice.commit(IT, some_files)
    alices_hub.faults = {"x.bin": [Fault(flip_byte=1)]}
    error = alice.refusal("read_repo_file", id=IT, commit=oid, name="x.bin")
    assert error == f"x.bin of alice/it is not what {alices_hub.url} announced"
