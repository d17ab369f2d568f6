"""What data/hub.py makes of damaged, broken off and killed downloads: never a model.

With the real huggingface_hub client against the small Hub of hub_server.py; 10 to 15 seconds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
from hub_client import (
    ROOT,
    SHARDS,
    WEIGHTS,
    assert_equal_files,
    command,
    fetch,
    write,
)
from hub_server import Fault

FAULTS = {
    "cut at the start": Fault(cut_after=0, times=6),
    "cut": Fault(cut_after=random.Random(0).randrange(1, 3000), times=6),
    "cut before the last byte": Fault(cut_after=-1, times=6),
    "first byte flipped": Fault(flip_byte=0, times=1),
    "last byte flipped": Fault(flip_byte=-1, times=1),
    "too short": Fault(lengthen=-1, times=1),
    "too long": Fault(lengthen=1, times=1),
    "416": Fault(status=416, times=1),
    "503": Fault(status=503, times=1),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_damaged_download_is_never_loaded_and_the_next_run_completes_it(
    fault, server, models, tmp_path
):
    """What came of it is not loaded, not even offline, and nothing of it stays in the cache.

    Seen to fail when the sha256 was not compared, when the part that had come was kept as the file,
    and when a refused file's link was removed without its blob.
    """
    server.faults[SHARDS[1]] = [replace(fault)]
    names = ["lab/sharded", "offline:lab/sharded", "lab/sharded", "offline:lab/sharded"]
    broken, offline, completed, cached = fetch(server, tmp_path, *names)
    assert SHARDS[1] in broken.error
    assert "run the same command again" in broken.error
    assert f"({SHARDS[1]} is missing)" in offline.error
    assert str(tmp_path / "hub") in offline.error
    assert_equal_files(completed, models["lab/sharded"])
    assert completed.files == cached.files
    assert len(server.asked_for(SHARDS[0])) == 1
    blobs = [path for path in (tmp_path / "hub").rglob("blobs/*") if path.is_file()]
    assert len(blobs) == len(completed.files)


def test_small_files_are_checked_as_well(server, models, tmp_path):
    """Seen to fail when only large files were hashed."""
    server.faults["config.json"] = [Fault(flip_byte=5, times=1)]
    broken, completed = fetch(server, tmp_path, "lab/whole", "lab/whole")
    assert "config.json of lab/whole is not what" in broken.error
    assert_equal_files(completed, models["lab/whole"])


def test_a_cut_connection_goes_on_where_it_broke(server, models, tmp_path):
    small_chunks = "constants.DOWNLOAD_CHUNK_SIZE = 500"
    server.faults[WEIGHTS] = [Fault(cut_after=1100, times=2)]
    (result,) = fetch(server, tmp_path / "0", "lab/whole", setup=small_chunks)
    assert_equal_files(result, models["lab/whole"])
    ranges = [request.headers["Range"] for request in server.asked_for(WEIGHTS)]
    assert ranges == [None, "bytes=1000-", "bytes=2000-"]

    no_range = Fault(status=416, only_ranges=True, times=1)
    server.faults[WEIGHTS] = [Fault(cut_after=1100, times=1), no_range]
    names = ["lab/whole", "lab/whole"]
    broken, completed = fetch(server, tmp_path / "1", *names, setup=small_chunks)
    assert "broke off (it answered 416): run the same command again" in broken.error
    assert_equal_files(completed, models["lab/whole"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_is_never_taken_for_a_complete_one(how, server, models, tmp_path):
    """Seen to fail (by Ctrl-C) when the files were downloaded in threads."""
    server.faults[WEIGHTS] = [Fault(hang_after=1000, times=1)]
    child = subprocess.Popen(
        command("lab/whole"),
        env=server.environment(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs, and what they start, ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    started = time.monotonic()
    while not list(tmp_path.rglob("*.incomplete")) or not server.asked_for(WEIGHTS):
        assert time.monotonic() < started + 60 and child.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    child.send_signal(how)
    child.communicate(timeout=60)  # Ctrl-C does not wait for the rest of the file
    assert child.returncode != 0
    offline, completed = fetch(server, tmp_path, "offline:lab/whole", "lab/whole")
    assert f"({WEIGHTS} is missing)" in offline.error
    assert_equal_files(completed, models["lab/whole"])
    assert WEIGHTS in completed.files


def test_a_run_that_dies_before_the_check_leaves_nothing_that_is_trusted(server, models, tmp_path):
    """Seen to fail without the file in unfinished/."""
    server.faults[WEIGHTS] = [Fault(flip_byte=100, times=1)]
    dies = """
download = data.download.hf_hub_download
def download_and_die(id, name, **more):
    download(id, name, **more)
    if name == "model.safetensors":
        os._exit(9)
data.download.hf_hub_download = download_and_die
"""
    child = subprocess.run(
        command("lab/whole", setup=dies), env=server.environment(tmp_path), cwd=ROOT
    )
    assert child.returncode == 9
    assert list(tmp_path.rglob(f"snapshots/*/{WEIGHTS}"))
    offline, completed = fetch(server, tmp_path, "offline:lab/whole", "lab/whole")
    assert "its last download was not finished" in offline.error
    assert_equal_files(completed, models["lab/whole"])
    assert not list(tmp_path.rglob("unfinished/*"))


def test_a_broken_update_leaves_the_former_commit_usable_offline(server, tmp_path):
    """Seen to fail when the branch was moved before the new commit's files were all there."""
    files = ["config.json", "tokenizer.json", WEIGHTS]
    old = server.publish("lab/moving", write(tmp_path / "old", *files))
    fetch(server, tmp_path / "home", "lab/moving")
    new = server.publish("lab/moving", write(tmp_path / "new", *files))
    server.faults[WEIGHTS] = [Fault(cut_after=9, times=6)]
    names = ["lab/moving", "offline:lab/moving", "lab/moving", "offline:lab/moving"]
    broken, offline, *updated = fetch(server, tmp_path / "home", *names)
    assert broken.error
    assert offline.revision == old
    assert [result.revision for result in updated] == [new, new]


def test_a_cached_file_that_lost_bytes_is_downloaded_again(server, models, tmp_path):
    """Seen to fail when the size of a cached file was not looked at."""
    (result,) = fetch(server, tmp_path, "lab/whole")
    os.truncate(result.folder / WEIGHTS, 1000)
    (healed,) = fetch(server, tmp_path, "lab/whole")
    assert_equal_files(healed, models["lab/whole"])
    report = "from huggingface_hub import scan_cache_dir; print(scan_cache_dir().warnings)"
    child = subprocess.run(
        [sys.executable, "-c", report],
        env=server.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert child.stdout == "[]\n", "the client finds nothing strange in the cache we leave"


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "home").touch()
    (result,) = fetch(server, tmp_path / "home", "lab/whole")
    assert f"the cache {tmp_path / 'home'}" in result.error
    assert "HF_HOME" in result.error
