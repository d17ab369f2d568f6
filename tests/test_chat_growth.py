"""How the chat's memory grows, in a process of its own. Linux only, half a minute."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
from chat_places import Place
from conftest import ROOT

# Of each visitor's 25 turns the first 10 fill the conversations and what the libraries keep.
# Memory that is free but was not given back is no growth: it is given back before each look.
MEASURE = """
import ctypes, gc, json, resource, sys
from pathlib import Path
from streamlit.testing.v1 import AppTest
import app.conversation

def in_use():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def open_page():
    page = AppTest.from_file("chat.py", default_timeout=60).run()
    page.slider(key=f"longest answer of {sys.argv[2]}").set_value(8)
    return page

app.conversation.MOST_EXCHANGES = 4
pages, sizes = [open_page() for _ in range(20)], []
for turn in range(25):
    for page in pages:
        page.chat_input[0].set_value(f"message {turn}").run()
        assert page.session_state["conversation"].exchanges[-1].answer.text
    if turn >= 9:
        sizes.append(in_use())
print(json.dumps(sizes))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux's /proc and glibc")
def test_500_turns_in_20_sessions_take_no_more_memory(chat_place: Place):
    """No more than 1 MB for 100 turns once all have begun.

    Seen to fail when each answer was kept for good with 16 kB of its own.
    """
    flags = ["--model", str(chat_place.files.folder), "--runs", str(chat_place.folder / "runs")]
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, *flags, "--dtype", "fp32"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
    )
    assert not child.returncode, child.stderr[-2000:]
    sizes = json.loads(child.stdout)
    turns = 20 * (len(sizes) - 1)
    assert (min(sizes[-3:]) - min(sizes[:3])) / turns * 100 <= 2**20
