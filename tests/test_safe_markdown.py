"""What the model or the visitor wrote is shown, and never a link, an image, HTML or a request.

The texts are rendered by a real Streamlit page in Chromium, which is the only judge of what
Streamlit's Markdown makes of them. Takes about 15 s.
"""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import ROOT, Seen, open_page, serve, streamlit_command, wait_until_idle
from markdown_payloads import BENIGN, CODE, PAYLOADS, RANDOM, SPACES, UGLY, URL

from app.safe_markdown import WORD_JOINER, safe_markdown

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGE = """
import json, sys
from pathlib import Path
import streamlit as st
from app.safe_markdown import safe_markdown

treatment = safe_markdown if sys.argv[2] == "safe" else str
for text in json.loads(Path(sys.argv[1]).read_text()):
    with st.chat_message("assistant"):
        st.markdown(treatment(text), anchors=False)
"""

# Every element of an answer that could act, but for the buttons that Streamlit puts on its code.
ACTIVE = (
    "a, img, image, picture, video, audio, source, script, style, link, meta, base, iframe, object,"
    " embed, form, input, textarea, select, details, marquee, svg:not(button *), math, .katex,"
    " button:not([data-testid='stBaseButton-elementToolbar']), [onerror], [onload], [onclick],"
    " [role='img'], [class^='stMarkdownColored'], .stMarkdownBadge"
)

PARTS = ["h1", "strong", "em", "del", "p", "ul > li", "ol > li", "blockquote", "th", "td", "code"]
READ = """(messages, [active, parts]) => messages.map(message => ({
    text: message.textContent,
    active: [...message.querySelectorAll(active)].map(element => element.outerHTML),
    parts: Object.fromEntries(parts.map(part =>
        [part, [...message.querySelectorAll(part)].map(element => element.innerText)])),
}))"""


@dataclass
class Shown:
    """What a page made of one text.

    Attributes:
        text: what can be read of it.
        active: its elements that could act.
        parts: by tag, the texts of its elements, as they look on the screen.
    """

    text: str
    active: list[str]
    parts: dict[str, list[str]]


def show(
    browser: Browser, texts: Sequence[str], folder: Path, treatment: str
) -> tuple[list[Shown], Seen]:
    """What a page makes of the texts, and what happened meanwhile."""
    from playwright.sync_api import expect

    script, data = folder / "page.py", folder / "texts.json"
    script.write_text(PAGE)
    data.write_text(json.dumps(texts))
    command = streamlit_command(script, str(data), treatment)
    with (
        serve(command, folder / "log.txt", PYTHONPATH=str(ROOT)) as server,
        open_page(browser, server.url) as seen,
    ):
        wait_until_idle(seen.page)
        messages = seen.page.locator("[data-testid='stChatMessageContent']")
        expect(messages).to_have_count(len(texts))
        expect(seen.page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=30_000)
        shown = messages.evaluate_all(READ, [ACTIVE, PARTS])
        assert len(seen.page.context.pages) == 1
    return [Shown(**what) for what in shown], seen


def letters(text: str) -> str:
    """A text without what Markdown may use up: spaces, its markers, a code's language."""
    text = text.replace("\r", "\n").replace("\0", "\ufffd").replace("\ud800", "?")
    text = re.sub(r"(?m)^(```|~~~)[^`\n]*$|^[\s>]*\d+[.)](?=\s)", "", text)
    return re.sub(rf"[\s`*_~#>|+={WORD_JOINER}\ufeff\x00-\x1f-]", "", text)


@pytest.fixture(scope="module")
def shown(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Shown], Seen]:
    """All texts of this file on one page."""
    texts = [*PAYLOADS, *RANDOM, BENIGN]
    answers, seen = show(chromium, texts, tmp_path_factory.mktemp("page"), "safe")
    return dict(zip(texts, answers, strict=True)), seen


def test_no_text_does_anything(shown: tuple[dict[str, Shown], Seen]) -> None:
    r"""Seen to fail when one of \ ` & < [ : $ is not escaped, one at a time.

    And when a | stays bare in code beside a table, or gets a backslash although it had one; when
    only \n ends a line; when every fence has three backticks; when an address is escaped instead of
    put into code; when code keeps the language mermaid, or any word as its language; when
    shortcodes get no word joiner; and when a line without small letters is left as it is.
    """
    answers, seen = shown
    assert len(set(PAYLOADS)) >= 100
    assert {text: answer.active for text, answer in answers.items() if answer.active} == {}
    assert (seen.off_origin(), seen.dialogs, seen.page_errors) == ([], [], [])


def test_payloads_can_be_read_as_they_were_written(shown: tuple[dict[str, Shown], Seen]) -> None:
    """Seen to fail when ~~~ is left as it is in a quote in a list.

    And when :material/ or shortcodes get no word joiner.
    """
    for text in PAYLOADS:
        written, seen = letters(text), letters(shown[0][text].text)
        if text in UGLY:
            written, seen = written.replace("\\", ""), seen.replace("\\", "")
        assert seen == written, text


def test_the_same_texts_act_when_they_are_not_treated(chromium: Browser, tmp_path: Path) -> None:
    """So this file would see it."""
    answers, seen = show(chromium, PAYLOADS, tmp_path, "none")
    acting = [text for text, answer in zip(PAYLOADS, answers, strict=True) if answer.active]
    assert len(acting) >= 100
    assert len(set(seen.off_origin())) >= 50


def test_formatting_and_code_look_like_themselves(shown: tuple[dict[str, Shown], Seen]) -> None:
    """Seen to fail when every backtick is escaped, and when a line's end does not stay one.

    And when arrows get no word joiner and so become another character, when two code spans touch,
    and when unequal rows of backticks make a code span.
    """
    parts = {
        part: [text.replace(WORD_JOINER, "") for text in texts]
        for part, texts in shown[0][BENIGN].parts.items()
    }
    prose = [
        'Some bold, slanted and struck words, x < 1 & "$y" too.',
        "It's a poem's line – 3 < 4, a_b, C:\\dir, 5*3, 2*3*4, $5 and $10, 12:30:00, R&D, [sic],",
        "a -> b -- c <= 2, :smile:, `half, ![i](j), <b>, &amp;, *, :material/x: and x@y, ``b` c``.",
    ]
    assert parts == {
        "p": ["\n".join(prose), "nine", "quoted"],
        "h1": ["Heading"],
        "strong": ["bold"],
        "em": ["slanted"],
        "del": ["struck"],
        "ul > li": ["one\nnested", "nested", "two a|b, xwww.x or y"],
        "ol > li": ["seven", "ten a|b"],
        "blockquote": ["quoted"],
        "th": ["left", "right"],
        "td": ["a|b", URL],
        "code": [
            'x < 1 & "$y"',
            "x@y",
            "a|b",
            "x",
            "www.x",
            "y",
            "eight",
            "a|b",
            "a|b",
            URL,
            CODE,
            SPACES,
        ],
    }


def test_an_answer_that_is_still_being_written_has_no_open_fence() -> None:
    """Seen to fail when a fence is closed only where the text closes it."""
    for text in (*PAYLOADS, *RANDOM, BENIGN):
        for end in range(len(text)):
            marker = ""
            for line in safe_markdown(text[:end]).split("\n"):
                fence = re.match(r" {0,3}(`{3,}|~{3,})", line)
                if fence and not marker:
                    marker = fence[1]
                elif fence and fence[1].startswith(marker) and line.strip() == fence[1]:
                    marker = ""
            assert not marker, text[:end]


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "- ",
        ">",
        " ",
        "`a",
        "`",
        "www.!",
        "http://",
        ":a",
        "1*",
        "\\",
        "a@",
        "@.",
        "|\n-",
        "~~~",
    ]
    + ["- ```\n", "```\n", "> ```\n", "    a\nb\n"],
)
def test_no_text_takes_long(part: str) -> None:
    """Seen to fail when an e-mail address may begin in the middle of a word."""
    started = time.perf_counter()
    safe_markdown(part * (100_000 // len(part)) + "|")
    assert time.perf_counter() - started < 3


def test_no_page_writes_html() -> None:
    """Nor do they use `st.write_stream`, which completes Markdown that looks unfinished.

    Seen to fail when a page calls or imports `st.html`, takes anything from `components.v1`, and
    when it gives `unsafe_allow_html=True`.
    """
    names = ("html", "iframe", "components.v1", "write_stream")
    forbidden = {f"{module}.{name}" for module in ("st", "streamlit") for name in names}
    forbidden.add("unsafe_allow_html")
    for path in (ROOT / "chat.py", *sorted((ROOT / "app").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            used = {ast.unparse(node)} if isinstance(node, ast.Attribute) else set()
            if isinstance(node, ast.keyword):
                used = {str(node.arg)}
            elif isinstance(node, ast.ImportFrom):
                used = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
            elif isinstance(node, ast.Import):
                used = {alias.name for alias in node.names}
            assert not used & forbidden, f"{path}: {used}"
