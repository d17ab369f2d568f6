"""What data/hub.py does without a Hub, without access, and with a token.

With the real huggingface_hub client against the small Hub of hub_server.py; 10 to 15 seconds.
"""

from __future__ import annotations

import pytest
from hub_client import NO_SOCKETS, SHARDS, assert_equal_files, fetch
from hub_server import hub

TOKEN = "hf_thisIsTheSecretThatNobodyMaySee"


def test_offline_opens_no_socket(server, models, tmp_path):
    """Seen to fail when the Hub was asked although HF_HUB_OFFLINE was set: a socket was opened."""
    server.publish("lab/whole", models["lab/whole"], revisions=("branch", "refs/pr/1"))
    names = ["lab/whole", "lab/whole@branch", "lab/whole@refs/pr/1", "lab/sharded"]
    there = fetch(server, tmp_path, *names)
    server.requests.clear()
    names += [f"lab/whole@{there[0].revision}", "lab/unknown", "lab/whole@unknown"]
    cached = fetch(server, tmp_path, *names, setup=NO_SOCKETS, HF_HUB_OFFLINE="1")
    assert [result.folder for result in cached[:4]] == [result.folder for result in there]
    assert cached[4].folder == there[0].folder
    assert cached[0].stderr == ""
    for result, revision in zip(cached[5:], ("main", "unknown"), strict=True):
        assert result.error.startswith("HF_HUB_OFFLINE is set, and lab/")
        assert f"(revision {revision}) is not in the cache {tmp_path / 'hub'}: " in result.error
        assert "--model demo and --model FOLDER need none" in result.error
    assert not server.requests


def test_a_partial_cache_is_refused_offline_with_a_missing_file_and_the_folder(server, tmp_path):
    """Seen to fail when the files of the index were not looked for."""
    (result,) = fetch(server, tmp_path, "lab/sharded")
    (result.folder / SHARDS[0]).unlink()
    (cached,) = fetch(server, tmp_path, "lab/sharded", HF_HUB_OFFLINE="1")
    assert f"is not complete in the cache {result.folder} ({SHARDS[0]} is missing)" in cached.error


@pytest.mark.parametrize("trouble", ["refused", "503", "429", "time-out", "no Hub"])
def test_the_cache_helps_out_where_the_hub_does_not_answer(trouble, server, tmp_path):
    """Seen to fail (by never ending) without a time limit, and when the note went to stdout."""
    (there,) = fetch(server, tmp_path, "lab/whole")
    more = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    if trouble == "refused":
        more["HF_ENDPOINT"] = "http://127.0.0.1:9"
    server.down = int(trouble) if trouble.isdigit() else None
    server.stalls = trouble == "time-out"
    server.nonsense = trouble == "no Hub"
    url = more.get("HF_ENDPOINT", server.url)
    cached, refused = fetch(server, tmp_path, "lab/whole", "lab/sharded", **more)
    assert cached.folder == there.folder
    why = {"refused": "ConnectError", "503": "it answered 503", "429": "it answered 429"}
    why |= {"time-out": "ReadTimeout", "no Hub": "what answers there is no Hub, check HF_ENDPOINT"}
    note = f"{url} cannot be reached ({why[trouble]})"
    assert cached.stderr == f"{note}: using lab/whole as it is in the cache\n"
    assert refused.error.startswith(f"{note}, and lab/sharded (revision main) is not in the cache")
    assert "--model demo and --model FOLDER need none" in refused.error


def test_each_refusal_has_its_own_message_and_none_shows_a_token(server, models, tmp_path):
    """The Hub here repeats the token in every header and body that the client may print.

    Seen to fail when a message held the text of the client's exception, when it was raised from
    that exception, when the client's log was heard, and when pages were not the endpoint's.
    """
    llama = "meta-llama/Llama-3.2-1B-Instruct"
    other = "lab/secret"
    for id in (llama, other, "lab/gated"):
        server.publish(id, models["lab/sharded"])
    server.gated |= {llama, "lab/gated"}
    server.private.add(other)
    server.tokens[TOKEN] = set()
    server.echoes_token = True
    names = [llama, "lab/gated", other, "lab/none", "lab/whole@none"]
    loud = {"HF_HUB_VERBOSITY": "debug"}
    without = fetch(server, tmp_path / "0", *names, **loud)
    granted = fetch(server, tmp_path / "1", *names, HF_TOKEN=TOKEN, **loud)
    (bad,) = fetch(server, tmp_path / "2", "lab/whole", HF_TOKEN=f"{TOKEN}2", **loud)
    server.gated_api = True
    without_api = fetch(server, tmp_path / "3", *names[:2])
    with_api = fetch(server, tmp_path / "4", *names[:2], HF_TOKEN=TOKEN)

    url, log_in = server.url, "`hf auth login` or HF_TOKEN"
    assert without[0].error == (
        f"{llama} is gated and you are not logged in: accept its licence at {url}/{llama} and log "
        f"in with {log_in}, or use the ungated copy unsloth/Llama-3.2-1B-Instruct"
    )
    assert granted[0].error == (
        f"{llama} is gated and your token has no access: ask for it at {url}/{llama} and wait until"
        " it is granted (a fine-grained token must also allow gated repos), or use the ungated copy"
        " unsloth/Llama-3.2-1B-Instruct"
    )
    assert "unsloth" not in without[1].error + granted[1].error
    for result, id in zip(without[2:4] + granted[2:4], [other, "lab/none"] * 2, strict=True):
        assert result.error == (
            f"no folder {id} here, and no model at {url}/{id} that you may see: "
            f"check the spelling, or if it is private, log in with {log_in}"
        )
    for results in (without, granted):
        assert results[4].error.startswith("lab/whole has no revision none: choose one at ")
    assert bad.error.startswith(f"{url} does not accept your token: renew it with {log_in}")
    assert [r.error for r in without_api] == [r.error for r in without[:2]]
    assert [r.error for r in with_api] == [r.error for r in granted[:2]]
    for result in [*without, *granted, bad, *without_api, *with_api]:
        assert TOKEN not in result.error + result.stderr
    used = {request.headers["Authorization"] for request in server.requests}
    assert f"Bearer {TOKEN}" in used, "or else nothing was tested"


def test_a_token_that_may_not_read_is_told_from_a_bad_one(server, tmp_path):
    server.tokens[TOKEN] = set()
    server.down = 403
    (result,) = fetch(server, tmp_path, "lab/whole", HF_TOKEN=TOKEN)
    assert f"{server.url} forbids your token to read lab/whole: " in result.error


def test_a_token_goes_to_the_hub_and_to_no_other_host(server, models, tmp_path):
    """Seen to fail when the client took every host for the Hub's (a patch of its own check)."""
    server.private.add("lab/whole")
    server.tokens[TOKEN] = {"lab/whole"}
    (result,) = fetch(server, tmp_path, "lab/whole", HF_TOKEN=TOKEN)
    assert_equal_files(result, models["lab/whole"])
    with_token = {r.host for r in server.requests if TOKEN in str(r.headers)}
    assert with_token == {"hub"}
    assert {request.host for request in server.requests} == {"hub", "cdn"}


def test_a_token_does_not_follow_a_mirror_s_redirect(server, models, tmp_path):
    with hub(models) as elsewhere:
        server.moved_to = elsewhere.url
        (result,) = fetch(server, tmp_path, "lab/whole", HF_TOKEN=TOKEN)
        assert "what answers there is no Hub, check HF_ENDPOINT" in result.error
        assert elsewhere.requests
        assert not [r for r in elsewhere.requests if TOKEN in str(r.headers)]


def test_a_password_in_the_endpoint_is_not_shown(server, tmp_path):
    """Seen to fail when the endpoint was shown as it is."""
    address = server.url.replace("//", "//student:pass1234@")
    (result,) = fetch(server, tmp_path, "lab/none", HF_ENDPOINT=address)
    assert server.url in result.error
    assert "pass1234" not in result.error + result.stderr
