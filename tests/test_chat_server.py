"""`python chat.py` and `streamlit run chat.py`, as processes: who gets in, what gets out.

Takes half a minute.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import streamlit as st
from browser import Seen, Server, chat_command, open_page, serve
from conftest import ROOT
from hub_server import hub
from playwright.sync_api import Browser, expect

import chat


def plain_command(*arguments: str):
    """`streamlit run chat.py`, as a user types it."""
    start = [sys.executable, "-m", "streamlit", "run", str(ROOT / "chat.py")]
    return lambda port: [*start, "--server.port", str(port), *arguments]


def addresses(server: Server) -> set[str]:
    """On which addresses somebody listens at the server's port, by the kernel's own list."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            host, port = local.split(":")
            if state == "0A" and int(port, 16) == server.port:
                found.add(host)
    return found


def test_a_port_that_is_taken_is_told_before_the_page_starts(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert chat.main(["--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"chat.py: port is {port}, which another program serves on 127.0.0.1; "
        "choose another --port\n"
    )


def test_the_settings_tell_nobody_and_watch_nothing():
    """Seen to fail when statistics, the watcher, details of errors or a public address were on."""
    sections = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    wanted = {
        "server": {"address": "127.0.0.1", "fileWatcherType": "none", "showEmailPrompt": False},
        "browser": {"gatherUsageStats": False},
        "client": {"showErrorDetails": "none"},
    }
    for section, settings in wanted.items():
        assert sections[section].items() >= settings.items()
        for name in sections[section]:
            st.get_option(f"{section}.{name}")  # raises if Streamlit has no such setting


@pytest.mark.parametrize("command", [chat_command(), plain_command()], ids=["python", "streamlit"])
def test_it_is_for_this_machine_only_wherever_it_is_started(command, tmp_path: Path):
    environment = {"HOME": str(tmp_path), "STREAMLIT_SERVER_ADDRESS": ""}
    with serve(command, tmp_path / "log.txt", cwd=tmp_path, **environment) as server:
        assert addresses(server) == {"0100007F"}, "not 127.0.0.1 alone"
        stranger = http.client.HTTPConnection("127.0.0.1", server.port)
        stranger.request(
            "GET",
            "/_stcore/stream",
            headers={
                "Origin": "http://example.org",
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            },
        )
        assert stranger.getresponse().status == 403, "another site's page may talk to it"
    log = server.log.read_text()
    assert "Network URL" not in log and "External URL" not in log and "Email" not in log
    assert "torch" not in log and "Traceback" not in log


def test_a_public_address_has_to_be_asked_for_and_is_warned_of(tmp_path: Path):
    command = chat_command("--address", "0.0.0.0")
    with serve(command, tmp_path / "log.txt", cwd=tmp_path) as server:
        assert addresses(server) == {"00000000"}
        assert "served on 0.0.0.0 without a password" in server.log.read_text()


def test_streamlit_itself_on_a_public_address_warns_too(chromium: Browser, tmp_path: Path):
    command = plain_command("--server.address", "0.0.0.0")
    with (
        serve(command, tmp_path / "log.txt", cwd=tmp_path) as server,
        open_page(chromium, server.url),
    ):
        wait_for(server, "served on 0.0.0.0 without a password")


def wait_for(server: Server, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)


def test_an_error_of_ours_shows_a_visitor_no_code_and_no_path(chromium: Browser, tmp_path: Path):
    broken = tmp_path / "chat.py"
    broken.write_text("secret = 'x' * 3\nraise RuntimeError('secret words')\n")
    (tmp_path / ".streamlit").symlink_to(ROOT / ".streamlit")
    start = [sys.executable, "-m", "streamlit", "run", str(broken)]
    with (
        serve(lambda port: [*start, "--server.port", str(port)], tmp_path / "log.txt") as server,
        open_page(chromium, server.url) as seen,
    ):
        error = seen.page.get_by_test_id("stException")
        expect(error).to_be_visible(timeout=30_000)
        text = error.inner_text()
    assert "secret" not in text and "chat.py" not in text and str(tmp_path) not in text


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "chat.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "80"},
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--modle", "demo"), "did you mean --model?"),
        (("--port", "many"), "invalid int value: 'many'"),
        (("--port", "99999"), "port is 99999"),
        (("--address", "300.1.1.1"), "address is '300.1.1.1'"),
        (("--adapter", ""), "the adapter's name is empty"),
        (("--device", "tpu"), "device is 'tpu'"),
        (("--dtype", "int3"), "dtype is 'int3'"),
        (("--model", "./nowhere"), "no folder at nowhere"),
        (("--model", "llama.gguf"), "llama.gguf is a file: give the folder of a model"),
        (("--runs", "nowhere"), "no folder at --runs nowhere"),
        (("--adapter", "nowhere"), "there is no such adapter"),
        (
            ("hello",),
            "'hello' is neither ask nor a flag; one answer on the terminal is: python chat.py ask",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_served(arguments, said):
    done = run(*arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "", done
    assert len(lines) == 1 and said in lines[0] and len(lines[0]) <= 300


def test_the_help_fits_a_terminal():
    text = run("--help").stdout
    assert "--adapter" in text and "--address" in text
    assert max(map(len, text.splitlines())) <= 80


def test_flags_that_are_not_understood_are_told_on_the_page(chromium: Browser, tmp_path: Path):
    with (
        serve(plain_command("--", "--modle", "demo"), tmp_path / "log.txt") as server,
        open_page(chromium, server.url) as seen,
    ):
        told = seen.page.get_by_text("flags that are not understood")
        expect(told).to_be_visible(timeout=30_000)
        wait_for(server, "did you mean --model?")


def choose_model(seen: Seen, name: str) -> None:
    """Types a name into the picker."""
    picker = seen.page.get_by_role("combobox", name=re.compile("Model"))
    picker.fill(name)
    picker.press("Enter")


def test_a_model_of_the_hub_is_downloaded_and_one_that_is_not_there_is_told(
    chromium: Browser, tmp_path: Path
):
    demo = ROOT / "model" / "demo"
    with hub({"lab/demo": demo}) as hub_server:
        environment = hub_server.environment(tmp_path)
        with (
            serve(chat_command(), tmp_path / "log.txt", cwd=tmp_path, **environment) as server,
            open_page(chromium, server.url) as seen,
        ):
            box = seen.page.get_by_test_id("stChatInput").get_by_role("textbox")
            expect(box).to_be_visible(timeout=30_000)
            choose_model(seen, "lab/nothing")
            expect(seen.page.get_by_test_id("stAlert")).to_contain_text(
                "lab/nothing", timeout=30_000
            )
            choose_model(seen, "lab/demo")
            expect(seen.page.get_by_text("lab/demo answers, without an adapter")).to_be_visible(
                timeout=30_000
            )
            box.fill("What is 2 plus 2?")
            box.press("Enter")
            expect(seen.page.get_by_text(re.compile(r"^\d+ tokens"))).to_be_visible(timeout=30_000)
        assert not seen.off_origin()
