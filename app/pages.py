"""The two pages, and a warning for whoever serves them to everybody."""

from __future__ import annotations

import logging
from pathlib import Path

import streamlit as st

from app.chat_page import chat_page
from app.page_config import PUBLIC_WARNING, PageConfig, is_public
from app.runs_page import runs_page


def show_pages(config: PageConfig) -> None:
    """Draws the page that the visitor is on.

    Without icons of their own: the browser would fetch those, for its tabs, from elsewhere.
    """

    def chat() -> None:
        st.set_page_config("Chat", layout="centered")
        chat_page(config)

    def runs() -> None:
        st.set_page_config("Runs", layout="wide")
        runs_page(Path(config.runs))

    warn_if_public()
    pages = [
        st.Page(chat, title="Chat", url_path="chat", default=True),
        st.Page(runs, title="Runs", url_path="runs"),
    ]
    st.navigation(pages).run()


@st.cache_resource(show_spinner=False)
def warn_if_public() -> None:
    """Says once, in the server's log, that the page has no password."""
    address = st.get_option("server.address")
    if is_public(address):
        logging.getLogger("chat").warning(PUBLIC_WARNING.format(address or "every address"))


def show_refusal() -> None:
    """Draws in place of the page that its flags are not understood; the server's log says why."""
    st.error("This page was started with flags that are not understood: see the terminal.")
