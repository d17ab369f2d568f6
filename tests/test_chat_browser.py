"""The chat page as a person sees it: a real server, a real browser, the tuned demo.

Every request of the browser is recorded, and none may leave the page's own server. Takes a minute,
and one or two more if the demo has not been trained by another test yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Seen, Server, chat_command, open_page, serve
from conftest import ROOT
from demo_runs import DemoRun
from playwright.sync_api import Browser, Locator, TimeoutError, expect

PICTURES = os.environ.get("PICTURES")  # a folder; screenshots go there if it is set


@pytest.fixture(scope="module")
def server(
    chromium: Browser, demo_run: Callable[[int], DemoRun], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The page with a trained demo, started from somewhere else."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    runs = str(demo_run(1).folder.parent)
    with serve(chat_command("--runs", runs), elsewhere / "log.txt", cwd=elsewhere) as running:
        yield running


@pytest.fixture
def chat(chromium: Browser, server: Server) -> Iterator[Seen]:
    """A new visitor. No request of hers leaves the server, and the browser meets no error."""
    with open_page(chromium, server.url) as seen:
        expect(box(seen)).to_be_visible(timeout=30_000)
        yield seen
    assert_clean(seen)


def assert_clean(seen: Seen) -> None:
    assert len(seen.requests) > 5 and not seen.off_origin()
    assert not seen.dialogs and not seen.page_errors and not seen.console_errors


def box(seen: Seen) -> Locator:
    return seen.page.get_by_test_id("stChatInput").get_by_role("textbox")


def messages(seen: Seen) -> Locator:
    return seen.page.get_by_test_id("stChatMessage")


def say(seen: Seen, text: str) -> str:
    """Sends a message by the keyboard, waits for the whole answer, and returns it."""
    before = messages(seen).count()
    box(seen).fill(text)
    box(seen).press("Enter")
    expect(messages(seen)).to_have_count(before + 2, timeout=30_000)
    finished = messages(seen).last.get_by_text(re.compile(r"^\d+ tokens")).first
    expect(finished).to_be_visible(timeout=30_000)
    expect(seen.page.get_by_role("button", name="Stop")).to_have_count(0, timeout=30_000)
    expect(finished).to_be_in_viewport()
    return messages(seen).last.get_by_test_id("stMarkdownContainer").first.inner_text()


def switch(seen: Seen, name: str) -> Locator:
    return seen.page.get_by_role("switch", name=name).or_(
        seen.page.get_by_role("checkbox", name=name)
    )


def flip(seen: Seen, name: str) -> None:
    seen.page.get_by_text(name, exact=True).click()


def slide(seen: Seen, name: str, key: str) -> None:
    """Moves a slider by the keyboard."""
    slider = seen.page.get_by_role("slider", name=name)
    if not slider.is_visible():
        seen.page.get_by_text("How to answer").click()
    slider.press(key)
    seen.page.wait_for_timeout(500)


def ramble(seen: Seen) -> None:
    """Makes the answers of this visitor long: at this temperature hardly anything ends them."""
    slide(seen, "Temperature", "End")
    slide(seen, "Top-p", "End")
    slide(seen, "Longest answer", "End")


def choose(seen: Seen, picker: str, what: str) -> None:
    """Picks an entry of a list by typing its name."""
    box = seen.page.get_by_role("combobox", name=picker)
    box.scroll_into_view_if_needed()
    seen.page.wait_for_timeout(500)  # scrolling and drawing anew close a list
    box.fill(what)
    seen.page.get_by_role("option", name=what, exact=True).click()
    seen.page.wait_for_timeout(500)


def take_picture(seen: Seen, name: str) -> None:
    if PICTURES:
        seen.page.wait_for_timeout(600)
        seen.page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_with_history_the_name_comes_back_and_without_it_does_not(chat: Seen):
    say(chat, "My name is Maja.")
    assert "Maja" in say(chat, "What is my name?")
    flip(chat, "Use chat history")
    assert "Maja" not in say(chat, "What is my name?")
    expect(chat.page.get_by_text("answered without history")).to_have_count(1)
    expect(messages(chat)).to_have_count(6)
    take_picture(chat, "chat")
    flip(chat, "Use chat history")
    assert "Maja" in say(chat, "What is my name?")
    expect(chat.page.get_by_text("answered without history")).to_have_count(1)


def test_an_answer_can_be_stopped_midway_and_the_chat_goes_on(chat: Seen):
    """An answer may be over before the click, drawn as it is; then another question is asked."""
    adapter = chat.page.get_by_role("combobox", name="Adapter").input_value()
    choose(chat, "Adapter", "base only")  # it never ends a turn
    ramble(chat)
    stop = chat.page.get_by_role("button", name="Stop")
    stopped = messages(chat).last.get_by_text(re.compile("stopped"))
    for number in range(20):
        box(chat).fill(f"Count from {number} to 9.")
        box(chat).press("Enter")
        with contextlib.suppress(TimeoutError):
            expect(messages(chat)).to_have_count(2 * number + 2, timeout=30_000)
            chat.page.get_by_text("▍").wait_for(timeout=5_000)
            stop.click(timeout=2_000)
        expect(stop).to_have_count(0, timeout=60_000)
        if stopped.count():
            break
    expect(stopped).to_be_visible()
    assert messages(chat).last.get_by_test_id("stMarkdownContainer").first.inner_text().strip()
    slide(chat, "Temperature", "Home")
    choose(chat, "Adapter", adapter)
    # After hundreds of odd words a model as small as this one goes on with them.
    flip(chat, "Use chat history")
    assert say(chat, "What is 2 plus 2?") == "2 plus 2 is 4."


def test_a_closed_tab_gives_its_turn_to_the_next(chromium: Browser, server: Server, chat: Seen):
    with open_page(chromium, server.url) as closed:
        expect(box(closed)).to_be_visible(timeout=30_000)
        ramble(closed)
        for number in range(20):  # an answer may be over before it is looked at
            box(closed).fill(f"Count from {number} to 9.")
            box(closed).press("Enter")
            with contextlib.suppress(TimeoutError):
                closed.page.get_by_text("▍").wait_for(timeout=5_000)
                break
            expect(messages(closed)).to_have_count(2 * number + 2, timeout=30_000)
        else:
            pytest.fail("no answer was seen while it was written")
    assert "Oakham" in say(chat, "Where does Anna live?")


def test_base_and_tuned_answer_side_by_side(chat: Seen):
    flip(chat, "Compare with the base")
    say(chat, "Where does Anna live?")
    columns = messages(chat).last.get_by_test_id("stColumn")
    expect(columns).to_have_count(2)
    for number in range(2):
        expect(columns.nth(number)).to_contain_text("tokens/s", timeout=30_000)
    tuned, base = columns.nth(0).inner_text(), columns.nth(1).inner_text()
    assert tuned.startswith("seed-1") and "Anna lives in Oakham." in tuned
    assert base.startswith("base only") and "Anna lives in Oakham." not in base
    take_picture(chat, "compare")


def test_what_the_model_saw_is_shown_token_by_token(chat: Seen):
    say(chat, "My name is <b>Maja</b>.")
    say(chat, "What is my name?")
    chat.page.get_by_role("button", name="What the model saw").last.click()
    dialog = chat.page.get_by_role("dialog")
    expect(dialog.locator(".prompt span").first).to_be_visible(timeout=30_000)
    text = dialog.locator(".prompt").inner_text().replace("⏎\n", "\n")
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting")
    assert "<|start_header_id|>user<|end_header_id|>\n\nMy name is <b>Maja</b>.<|eot_id|>" in text
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert dialog.locator(".prompt b").count() == 0, "a user's text became markup"
    colours = {
        kind: dialog.locator(f".prompt .{kind}").first.evaluate(
            "e => getComputedStyle(e).backgroundColor"
        )
        for kind in ("control", "system", "user", "assistant")
    }
    assert len(set(colours.values())) == 4, colours
    expect(
        dialog.get_by_text(re.compile("of the 2,048 tokens that its context holds"))
    ).to_be_visible()
    take_picture(chat, "saw")
    chat.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_a_chat_becomes_training_data(chat: Seen, tmp_path: Path):
    say(chat, "My name is Maja.")
    say(chat, "Where does Anna live?")
    messages(chat).nth(3).get_by_role("button", name="Correct").click()
    dialog = chat.page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("In Oakham, by the river.")
    dialog.get_by_role("button", name="Save").click()
    expect(messages(chat).nth(3).get_by_text("In Oakham, by the river.")).to_be_visible()
    expect(messages(chat).nth(3).get_by_text(re.compile("corrected by hand"))).to_be_visible()
    say(chat, "What is 2 plus 2?")
    messages(chat).nth(5).get_by_text("thumb_down").click()
    expect(chat.page.get_by_text(re.compile("Not in the file: 1 rated down"))).to_be_visible()
    with chat.page.expect_download() as download:
        chat.page.get_by_role("button", name="Save as training data").click()
    saved = tmp_path / "chat.jsonl"
    download.value.save_as(saved)
    [row] = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [turn["value"] for turn in row["conversations"]][::2] == [
        "My name is Maja.",
        "Where does Anna live?",
    ]
    assert row["conversations"][3]["value"] == "In Oakham, by the river."
    command = [sys.executable, "-m", "data.inspect", str(saved), "--model", "demo", "--rows", "1"]
    looked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert looked.returncode == 0, looked.stderr
    assert "In Oakham, by the river." in looked.stdout and "1 kept" in looked.stdout


def test_a_message_can_be_edited_and_an_answer_given_again(chat: Seen):
    say(chat, "Where does Anna live?")
    chat.page.get_by_role("button", name="Edit message").click()
    dialog = chat.page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("What is 2 plus 3?")
    dialog.get_by_role("button", name="Send").click()
    expect(messages(chat).last.get_by_text("2 plus 3 is 5.")).to_be_visible(timeout=30_000)
    expect(messages(chat)).to_have_count(2)
    chat.page.get_by_role("button", name="Answer again").click()
    expect(messages(chat).last.get_by_text("2 plus 3 is 5.")).to_be_visible(timeout=30_000)
    expect(messages(chat)).to_have_count(2)


def test_a_message_brings_the_newest_into_view_wherever_the_page_was(chat: Seen):
    """`say` looks for the answer in the viewport. Seen to fail when nothing scrolled to it."""
    for question in ("My name is Maja.", "Where does Anna live?", "What is 2 plus 2?"):
        say(chat, question)
    flip(chat, "Use chat history")
    say(chat, "What is my name?")
    flip(chat, "Use chat history")
    flip(chat, "Compare with the base")
    say(chat, "Where does Anna live?")
    messages(chat).first.scroll_into_view_if_needed()
    expect(messages(chat).last).not_to_be_in_viewport()
    say(chat, "What is 2 plus 3?")


def test_markup_in_a_message_stays_text(chat: Seen):
    text = (
        "<img src=http://example.org/a.png> ![b](http://example.org/b.png) "
        "[c](http://example.org/c) http://example.org/d <script>alert(1)</script> :red[e]"
    )
    say(chat, text)
    question = messages(chat).first
    assert question.locator("img, a, script").count() == 0
    assert question.get_by_test_id("stMarkdownContainer").inner_text().replace("\u2060", "") == text
    say(chat, "What is 2 plus 2?")


def test_the_runs_are_drawn(chat: Seen):
    say(chat, "My name is Maja.")
    chat.page.get_by_role("link", name="Runs").click()
    charts = chat.page.get_by_test_id("stVegaLiteChart")
    expect(charts.first.locator("canvas, svg").first).to_be_visible(timeout=30_000)
    expect(charts.nth(4)).to_be_attached(timeout=30_000)
    take_picture(chat, "runs")
    chat.page.get_by_role("link", name="Chat").click()
    expect(messages(chat)).to_have_count(2)


def test_the_keyboard_alone_is_enough_to_chat(chat: Seen):
    page = chat.page
    focused = "document.activeElement?.closest('[data-testid=stChatInput]') !== null"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(focused):
            break
    assert page.evaluate(focused), "the box for messages cannot be reached by Tab"
    for question, count in (("My name is Maja.", 2), ("What is my name?", 4)):
        page.keyboard.type(question)
        page.keyboard.press("Enter")
        expect(messages(chat)).to_have_count(count, timeout=30_000)
        finished = messages(chat).last.get_by_text(re.compile("tokens/s"))
        expect(finished).to_be_visible(timeout=30_000)
        # The switches are off for as long as the answer is written.
        expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=30_000)
    expect(messages(chat).last.get_by_text("Your name is Maja.")).to_be_visible()
    on_the_switch = "document.activeElement.getAttribute('aria-label') === 'Use chat history'"
    for _ in range(8):
        page.keyboard.press("Shift+Tab")
        if page.evaluate(on_the_switch):
            break
    assert page.evaluate(on_the_switch), "the switch cannot be reached from the box"
    page.keyboard.press("Space")
    page.wait_for_timeout(500)
    assert "Maja" not in say(chat, "What is my name?")


def test_every_control_has_a_name(chat: Seen):
    say(chat, "My name is Maja.")
    chat.page.get_by_text("How to answer").click()
    controls = chat.page.locator("button, input, textarea, [role=slider], [role=switch], select")
    nameless = controls.evaluate_all(
        """all => all.filter(e => e.offsetParent !== null && !(
            e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title ||
            e.innerText?.trim() || e.labels?.length)).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert controls.count() > 15 and not nameless


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_at_any_width_in_light_and_dark(
    chromium: Browser, server: Server, width: int, scheme: str
):
    with open_page(chromium, server.url, width, 800, scheme) as seen:
        expect(box(seen)).to_be_visible(timeout=30_000)
        say(seen, "My name is Maja.")
        say(seen, "What is my name?")
        wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not seen.page.evaluate(wider), "it has to be scrolled sideways"
        last = messages(seen).last.get_by_test_id("stMarkdownContainer").first
        expect(last).to_be_in_viewport()
        assert contrast(seen, last) >= 4.5
        assert contrast(seen, messages(seen).last.get_by_text(re.compile("tokens/s"))) >= 4.5
        take_picture(seen, f"chat-{width}-{scheme}")
    assert_clean(seen)


def contrast(seen: Seen, element: Locator) -> float:
    """The contrast of a text with what is behind it: WCAG 2.2, "contrast ratio", 1 to 21."""
    colours = element.evaluate(
        """e => {
            const deepest = [...e.querySelectorAll('*')].filter(c => c.innerText).pop() || e;
            const solid = n => !n ? 'rgb(255, 255, 255)' :
                /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(n).backgroundColor)
                    ? solid(n.parentElement) : getComputedStyle(n).backgroundColor;
            let opacity = 1;
            for (let n = deepest; n; n = n.parentElement) opacity *= getComputedStyle(n).opacity;
            return [getComputedStyle(deepest).color, solid(deepest), String(opacity)];
        }"""
    )
    numbers = [[float(n) for n in re.findall(r"[\d.]+", colour)] for colour in colours]
    text, behind, [opacity] = numbers
    opacity *= text[3] if len(text) > 3 else 1.0
    mixed = [opacity * a + (1 - opacity) * b for a, b in zip(text[:3], behind[:3], strict=True)]
    light, dark = sorted((luminance(mixed), luminance(behind[:3])), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    """How bright an sRGB colour is: WCAG 2.2, "relative luminance", 0 to 1."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
