"""A browser that looks at the page: a server in a child process, Chromium, all that it asked for.

    from browser import open_page, serve, streamlit_command

    def test_the_page_asks_nobody_else(chromium, tmp_path):
        with serve(streamlit_command("chat.py"), tmp_path / "log.txt") as server:
            with open_page(chromium, server.url, width=390, colour_scheme="dark") as seen:
                seen.page.get_by_role("textbox").fill("Hi")
            assert not seen.off_origin()

Playwright's Python package drives the Chromium of the system; it can also download its own, which
is not needed here. Both are optional: without them the tests that use `chromium` are skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# From the fourth on: Chromium itself is to ask for nothing that the page did not ask for.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROOT = Path(__file__).parents[1]
# What belongs to the page itself and reaches no network.
OWN_SCHEMES = ("data", "blob", "about")


@dataclass(frozen=True)
class Server:
    """A running page.

    Attributes:
        url: its address, without a slash at the end.
        port: of this address.
        log: the file that its stdout and stderr go to.
        process: the child, which leads a process group of its own.
    """

    url: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def streamlit_command(script: str | Path, *arguments: str) -> Callable[[int], list[str]]:
    """The command that serves any Streamlit script on a port, with the settings of chat.py."""
    flags = {
        "--server.address": "127.0.0.1",
        "--server.headless": "true",
        "--server.fileWatcherType": "none",
        "--browser.gatherUsageStats": "false",
        "--client.showErrorDetails": "none",
    }
    settings = [part for flag in flags.items() for part in flag]
    start = [sys.executable, "-m", "streamlit", "run", str(script), *settings]
    return lambda port: [*start, "--server.port", str(port), "--", *arguments]


def chat_command(*arguments: str) -> Callable[[int], list[str]]:
    """The command by which a user starts the chat page, on a port."""
    return lambda port: [sys.executable, str(ROOT / "chat.py"), "--port", str(port), *arguments]


@contextmanager
def serve(
    command: Callable[[int], Sequence[str]],
    log: Path,
    cwd: Path = ROOT,
    seconds: float = 60,
    **environment: str,
) -> Iterator[Server]:
    """Runs a server in a child process until the block ends.

    Args:
        command: gives the command line for the port that was chosen.
        log: the file that its output goes to.
        cwd: the folder that it is started from.
        seconds: how long it may take to answer.
        environment: set for it besides this process's own.

    Raises:
        RuntimeError: if it ended or did not answer in time; with its output.
    """
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command(port)),
            cwd=cwd,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, process, log, time.monotonic() + seconds)
        yield Server(url, port, log, process)
    finally:
        end_group(process)


def wait_until_healthy(
    url: str, process: subprocess.Popen[bytes], log: Path, deadline: float
) -> None:
    """Returns once Streamlit says that it is ready for visitors."""
    while True:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            why = "ended" if process.poll() is not None else "did not answer in time"
            raise RuntimeError(f"the server {why}:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads its own group, and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass
    process.wait()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium without a window, one for all tests."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        pytest.skip("needs playwright and Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page, and what happened on it since it was opened.

    Attributes:
        page: playwright's.
        url: the address that it was opened at.
        requests: the addresses of all requests, the blocked ones and web sockets too.
        dialogs: the texts of alert(), confirm() and the like; each was dismissed.
        page_errors: exceptions that no script caught.
        console_errors: what was logged as an error.
    """

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    page_errors: list[str] = field(default_factory=list)
    console_errors: list[str] = field(default_factory=list)

    def off_origin(self) -> list[str]:
        """The requests that did not go to the page's own server."""
        return off_origin(self.requests, self.url)


def off_origin(requests: Sequence[str], url: str) -> list[str]:
    """Those of the requests that did not go to the server of this address."""
    own = urlsplit(url)
    return [
        request
        for request in requests
        if urlsplit(request).scheme not in OWN_SCHEMES and urlsplit(request).netloc != own.netloc
    ]


@contextmanager
def open_page(
    browser: Browser,
    url: str,
    width: int = 1280,
    height: int = 900,
    colour_scheme: str = "light",
) -> Iterator[Seen]:
    """Opens an address in a context of its own, without cookies, and records what happens.

    Pages that a click opens in new tabs are recorded too.
    """
    options: dict[str, Any] = {"color_scheme": colour_scheme, "accept_downloads": True}
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    try:
        seen = Seen(context.new_page(), url)
        context.on("request", lambda request: seen.requests.append(request.url))
        context.on("page", lambda page: record(page, seen))
        record(seen.page, seen)
        seen.page.goto(url, wait_until="domcontentloaded")
        yield seen
    finally:
        context.close()


def record(page: Page, seen: Seen) -> None:
    """Notes the sockets, dialogs and errors of one tab."""

    def dismiss(dialog: Any) -> None:
        seen.dialogs.append(dialog.message)
        dialog.dismiss()

    def note_console(message: Any) -> None:
        if message.type == "error":
            seen.console_errors.append(message.text)

    page.on("websocket", lambda web_socket: seen.requests.append(web_socket.url))
    page.on("dialog", dismiss)
    page.on("pageerror", lambda error: seen.page_errors.append(str(error)))
    page.on("console", note_console)


def wait_until_idle(page: Page, seconds: float = 60) -> None:
    """Returns once Streamlit has drawn the page and no script is running for it."""
    app = page.locator('[data-testid="stApp"]')
    app.wait_for(timeout=seconds * 1000)
    page.wait_for_function(
        """() => document.querySelector('[data-testid="stApp"]')
            ?.getAttribute('data-test-script-state') === 'notRunning'""",
        timeout=seconds * 1000,
    )
