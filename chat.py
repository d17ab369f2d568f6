"""Talk to a model, with or without a LoRA adapter.

    python chat.py                                    the chat page, in the browser
    python chat.py --adapter runs/demo-demo           beginning with that adapter
    python chat.py ask "What is a LoRA adapter?" --model demo

`streamlit run chat.py -- --adapter runs/demo-demo` is the same page.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from app.ask import AskConfig, ask
from app.model_files import open_model, tuned_from
from app.page_config import PUBLIC_WARNING, PageConfig, is_public
from data.command_line import one_line, option, parse, run_command


@dataclass(frozen=True)
class ServerConfig(PageConfig):
    """The page, and where it is served."""

    address: str = option("127.0.0.1", "0.0.0.0 lets everybody in who can reach this machine")
    port: int = option(8501, "of the page's address")


def serve(config: ServerConfig) -> None:
    """Becomes the Streamlit server of the page; the other settings are in .streamlit/."""
    check(config)
    if is_public(config.address):
        print(f"chat.py: {PUBLIC_WARNING.format(config.address)}", file=sys.stderr, flush=True)
    server = {"server.address": config.address, "server.port": config.port}
    command = [sys.executable, "-m", "streamlit", "run", __file__]
    command += [f"--{name}={value}" for name, value in server.items()]
    page = {field.name: getattr(config, field.name) for field in dataclasses.fields(PageConfig)}
    command += ["--", *(f"--{name}={value}" for name, value in page.items() if value is not None)]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def check(config: ServerConfig) -> None:
    """Refuses what the page could only refuse later. Raises ValueError."""
    if not 0 < config.port < 2**16:
        raise ValueError(f"port is {config.port}; it must be from 1 to 65535")
    check_address(config.address, config.port)
    if config.runs != PageConfig.runs and not Path(config.runs).is_dir():
        raise ValueError(
            f"no folder at --runs {config.runs}: check the path, or leave the flag out"
        )
    if config.adapter is not None:
        tuned_from(config.adapter)
    if config.model is not None:
        open_model(config.model)
    if (config.device, config.dtype, config.quantize) != ("auto", "auto", None):
        from model.device import check_quantize, choose_device, choose_dtype

        device = choose_device(config.device)
        check_quantize(config.quantize, device, choose_dtype(config.dtype, device))


def check_address(address: str, port: int) -> None:
    """Makes sure that a page can be served there. Raises ValueError."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port is {port}, which another program serves on {address}; choose another --port"
            ) from None
        raise ValueError(
            f"address is {address!r}, which cannot be served on ({error.strerror}); leave it out, "
            "or use 0.0.0.0"
        ) from None


def show_page(arguments: list[str]) -> None:
    """Draws the page once, as Streamlit does at every click."""
    from app.pages import show_pages, show_refusal

    try:
        config = parse(PageConfig, arguments, "streamlit run chat.py --", "The chat page.")
    except SystemExit:
        show_refusal()
    else:
        show_pages(config)


def is_served() -> bool:
    """Whether Streamlit executes this file, to draw the page."""
    runner = sys.modules.get("streamlit.runtime.scriptrunner")
    return runner is not None and runner.get_script_run_ctx(suppress_warning=True) is not None


def main(arguments: list[str]) -> int:
    """Dispatches the command line; returns the exit status."""
    first = arguments[0] if arguments else ""
    if first == "ask":
        question = parse(
            AskConfig, arguments[1:], "chat.py ask", "Streams the answer to a question."
        )
        return run_command("chat.py", lambda: ask(question))
    if first and not first.startswith("-"):
        advice = 'one answer on the terminal is: python chat.py ask "QUESTION"'
        print(one_line(f"chat.py: {first!r} is neither ask nor a flag; {advice}"), file=sys.stderr)
        return 2
    about = 'Serves the chat page. One answer instead: chat.py ask "QUESTION" (ask --help)'
    page = parse(ServerConfig, arguments, "chat.py", about)
    return run_command("chat.py", lambda: serve(page))


if __name__ == "__main__":
    if is_served():
        show_page(sys.argv[1:])
    else:
        sys.exit(main(sys.argv[1:]))
