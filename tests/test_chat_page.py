"""The chat page, without a browser: every control of it, and what visitors share.

Seen to fail when a stopped answer was dropped, when the switch left the system prompt out, and when
an error left the question waiting. Takes twenty seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
import torch
from chat_places import Place, write_adapter
from conftest import ROOT
from streamlit.testing.v1 import AppTest

import app.chat_page
import app.conversation
import app.engine
import app.writing
from app.chat_page import engine_of
from app.conversation import Answer, Conversation
from app.engine import Written
from app.exchange import notes
from app.model_files import Tuned, same_model, tuned_in
from app.page_config import PageConfig
from app.voice import MOST_OPEN, offered, open_once, pinned
from app.writing import follow
from data.chat_format import Message


@pytest.fixture(autouse=True)
def fresh_server() -> Iterator[None]:
    """What visitors share is each test's own."""
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture
def visit(chat_place: Place, monkeypatch: pytest.MonkeyPatch):
    """Opens the page of a place, as one more visitor."""

    def open_page(*flags: str, place: Place = chat_place) -> AppTest:
        runs = str(place.folder / "runs")
        given = ["--model", str(place.files.folder), "--runs", runs, "--dtype", "fp32", *flags]
        monkeypatch.setattr(sys, "argv", ["chat.py", *given])
        page = AppTest.from_file(str(ROOT / "chat.py"), default_timeout=60).run()
        assert not page.exception
        if not page.error:
            page.slider(key=f"longest answer of {place.files.folder}").set_value(8)
        return page

    return open_page


def say(page: AppTest, text: str) -> Answer:
    """Sends a message; the answer to it."""
    page.chat_input[0].set_value(text).run()
    assert not page.exception
    return conversation_of(page).exchanges[-1].answer


def conversation_of(page: AppTest) -> Conversation:
    return page.session_state["conversation"]


def contents(answer: Answer) -> list[str]:
    return [message.content for message in answer.saw]


def texts(page: AppTest) -> str:
    """All that stands on the page."""
    elements = [*page.markdown, *page.caption, *page.error, *page.text]
    return "\n".join(element.value for element in elements)


def test_a_message_is_answered_below_it(visit):
    page = visit()
    answer = say(page, "hello there")
    assert answer.state in ("done", "cut") and answer.text and answer.tokens
    assert [message.name for message in page.chat_message] == ["user", "assistant"]
    assert f"{answer.tokens} tokens" in texts(page) and "tokens/s" in texts(page)
    assert not page.button(key=f"saw {answer.key}").disabled


def test_the_newest_adapter_is_offered_first_and_base_only_last(visit, own_place):
    write_adapter(own_place.files.folder, own_place.folder / "runs" / "three" / "adapter", 5)
    config = (own_place.folder / "runs" / "one" / "config.json").read_text()
    (own_place.folder / "runs" / "three" / "config.json").write_text(config)
    page = visit(place=own_place)
    assert page.selectbox[1].options == ["three", "two", "one", "base only"]
    assert say(page, "hello").by == "three"
    page.selectbox[1].set_value("base only").run()
    assert say(page, "hello").by == "base only"


def test_the_switch_decides_what_the_next_answer_knows(visit):
    page = visit()
    page.text_area(key="system").set_value("Be brief.").run()
    first = say(page, "one")
    assert contents(say(page, "two")) == ["Be brief.", "one", first.text, "two"]
    page.toggle(key="with_history").set_value(False).run()
    without = say(page, "three")
    assert contents(without) == ["Be brief.", "three"]
    assert texts(page).count("answered without history") == 1
    fresh = visit()
    fresh.text_area(key="system").set_value("Be brief.").run()
    alone = say(fresh, "three")
    assert (alone.saw, alone.text) == (without.saw, without.text)
    page.toggle(key="with_history").set_value(True).run()
    assert {"one", "three"} < set(contents(say(page, "four"))), "an answer of either kind counts"
    assert len(conversation_of(page).exchanges) == 4


def test_history_that_has_no_room_is_left_out_and_counted(visit, own_place):
    config = own_place.files.folder / "config.json"
    config.write_text(config.read_text().replace("131072", "256"))
    page = visit(place=own_place)
    for number in range(6):
        answer = say(page, f"this is message number {number}")
    assert answer.left_out > 0
    assert f"{answer.left_out} oldest exchanges had no room" in texts(page)
    refused = say(page, "much too long " * 100)
    assert refused.state == "failed" and "248 fit beside" in refused.trouble
    assert say(page, "short").text


def test_an_answer_can_be_given_again(visit):
    page = visit()
    page.slider(key=f"temperature of {page_folder(page)}").set_value(1.0).run()
    first = say(page, "hello there")
    exchange = conversation_of(page).exchanges[-1]
    page.button(key=f"again {exchange.key}").click().run()
    again = conversation_of(page).exchanges[-1].answer
    assert len(conversation_of(page).exchanges) == 1 and again.text != first.text


def page_folder(page: AppTest) -> str:
    """The model's folder, as it stands in the keys of the sliders."""
    [key] = [s.key for s in page.slider if s.key.startswith("temperature of ")]
    return key.removeprefix("temperature of ")


def test_base_and_tuned_answer_side_by_side(visit):
    page = visit()
    page.toggle(key="compares").set_value(True).run()
    say(page, "hello there")
    exchange = conversation_of(page).exchanges[-1]
    assert exchange.answer.by in ("one", "two") and exchange.base_answer.by == "base only"
    assert exchange.answer.text != exchange.base_answer.text
    page.selectbox[1].set_value("base only").run()
    assert page.toggle(key="compares").disabled
    say(page, "hello there")
    assert conversation_of(page).exchanges[-1].base_answer is None


def test_clear_forgets_the_conversation(visit):
    page = visit()
    say(page, "hello")
    [clear] = [button for button in page.button if button.label == "Clear the chat"]
    clear.click().run()
    assert not conversation_of(page).exchanges and not page.chat_message


def test_what_the_model_saw_opens(visit):
    page = visit()
    answer = say(page, "hello")
    assert "Point at a token" not in texts(page)
    page.button(key=f"saw {answer.key}").click().run()
    assert not page.exception and "Point at a token" in texts(page)


def test_visitors_share_one_model_and_nothing_else(visit, monkeypatch):
    loads = []
    load = app.engine.load_model
    monkeypatch.setattr(app.engine, "load_model", lambda *args: loads.append(args) or load(*args))
    pages = [visit() for _ in range(5)]
    pages[0].selectbox[1].set_value("one").run()
    pages[1].selectbox[1].set_value("base only").run()
    pages[2].toggle(key="with_history").set_value(False).run()
    pages[3].text_area(key="system").set_value("Be brief.").run()
    for page in pages:
        say(page, "hello")
    for page in pages:
        page.run()
    assert len(loads) == 1
    said = [conversation_of(page).exchanges[-1].answer for page in pages]
    assert [answer.by for answer in said] == ["one", "base only", "two", "two", "two"]
    assert [answer.with_history for answer in said] == [True, True, False, True, True]
    assert [len(answer.saw) for answer in said] == [1, 1, 1, 2, 1]
    assert said[2].text == said[4].text and len({answer.text for answer in said}) == 4


def test_an_interrupted_answer_stays_and_frees_its_turn(visit, monkeypatch):
    """As when another run of the page, or its end, breaks into the one that writes."""
    stop_after = 3

    follow = app.writing.follow

    def broken_off(pieces, answers, update):
        def some():
            for count, piece in enumerate(pieces):
                if count == stop_after:
                    st.stop()
                yield piece

        follow(some(), answers, update)

    page = visit()
    with monkeypatch.context() as patch:
        patch.setattr(app.writing, "follow", broken_off)
        page.chat_input[0].set_value("hello there").run()
    engine = engine_of("auto", "fp32", None)
    assert not engine.turns.line
    page.run()
    [exchange] = conversation_of(page).exchanges
    assert exchange.answer.state == "stopped" and exchange.answer.tokens == stop_after
    assert "stopped" in texts(page)
    answer = say(page, "go on")
    assert contents(answer) == ["hello there", exchange.answer.text, "go on"]


def test_a_deleted_run_is_a_sentence_and_the_next_message_works(visit, own_place):
    page = visit(place=own_place)
    say(page, "hello")
    shutil.rmtree(own_place.folder / "runs" / "two")
    assert "there is no such adapter" in say(page, "hello again").trouble
    assert "there is no such adapter" in page.error[0].value
    page.selectbox[1].set_value("one").run()
    assert say(page, "hello").text


def test_a_run_whose_name_or_files_are_odd_takes_nothing_down(visit, own_place):
    runs = own_place.folder / "runs"
    os.mkdir(os.fsencode(runs) + b"/od\xff")
    for name, config in (
        ("od\udcff", '{"model": "demo"}'),
        ("half", '{"model": "\\ud800"}'),
        ("deep", "[" * 200_000),
        ("list", "[1]"),
        ("wrong", '{"model": 3}'),
    ):
        (runs / name).mkdir(exist_ok=True)
        (runs / name / "config.json").write_text(config)
    page = visit(place=own_place)
    assert page.selectbox[1].options == ["two", "one", "base only"] and not page.error
    assert say(page, "hello").text
    assert runs_page_has_no_exception(runs)


def runs_page_has_no_exception(runs: Path) -> bool:
    def draw(folder: str) -> None:
        from pathlib import Path

        from app.runs_page import runs_page

        runs_page(Path(folder))

    return not AppTest.from_function(draw, args=(str(runs),), default_timeout=60).run().exception


def test_an_adapter_of_the_command_line_that_is_gone_leaves_the_others(visit, own_place):
    gone = own_place.folder / "gone"
    shutil.copytree(own_place.adapter("one"), gone)
    page = visit("--adapter", str(gone), place=own_place)
    assert page.selectbox[1].options[0] == str(gone)
    assert say(page, "hello").by == str(gone)
    shutil.rmtree(gone)
    again = visit("--adapter", str(gone), place=own_place)
    assert "there is no such adapter" in again.warning[0].value
    assert say(again, "hello").by == "two"


def test_a_question_can_be_stopped_before_it_is_taken_up(visit, monkeypatch):
    page = visit()
    with monkeypatch.context() as patch:
        patch.setattr(app.chat_page, "begin", lambda *args: st.stop())
        page.chat_input[0].set_value("hello").run()
        page.button(key="stop").click().run()
    [exchange] = conversation_of(page).exchanges
    assert exchange.answer.state == "stopped" and not exchange.answer.text
    page.run()
    assert exchange.answer is conversation_of(page).exchanges[0].answer
    assert say(page, "hello again").text


def test_a_deleted_model_is_a_sentence_and_the_next_message_works(visit, own_place):
    page = visit(place=own_place)
    say(page, "hello")
    shutil.rmtree(own_place.files.folder)
    assert "neither model.safetensors" in say(page, "hello").trouble
    assert "neither model.safetensors" in page.error[0].value
    page.selectbox[0].set_value("demo").run()
    assert say(page, "hello").text


def test_lack_of_memory_is_a_sentence_and_the_next_message_works(visit, monkeypatch):
    page = visit()
    say(page, "hello")

    def fails(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(app.engine, "stream", fails)
        assert "not enough memory" in say(page, "hello").trouble
    assert "not enough memory" in texts(page)
    assert say(page, "hello").text


def test_a_model_that_is_not_there_is_a_sentence(visit):
    page = visit("--model", "./nowhere")
    assert "no folder at nowhere" in page.error[0].value
    page.selectbox[0].set_value("demo").run()
    assert not page.error
    assert say(page, "hello").text


def test_markup_in_a_chat_is_text(visit):
    page = visit()
    say(page, "<b>bold</b> ![x](http://example.org/x.png)")
    shown = [element.value for element in page.markdown if "bold" in element.value]
    assert shown and all("\\<b>" in text and "![x]" not in text for text in shown)


def walk(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Everything that hangs on a session's own objects."""
    if id(thing) in seen or isinstance(thing, type | str | bytes | int | float):
        return
    seen.add(id(thing))
    yield thing
    if isinstance(thing, dict):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inner = list(thing)
    else:
        inner = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    for part in inner:
        yield from walk(part, seen)


def test_sessions_hold_no_tensors(visit):
    """Seen to fail when the conversation held the engine's objects."""
    page = visit()
    say(page, "hello")
    state = {key: page.session_state[key] for key in page.session_state}
    found = [type(thing) for thing in walk(state, set())]
    assert Conversation in found and Message in found
    assert not any(issubclass(kind, torch.Tensor | torch.nn.Module) for kind in found)
    assert not any(kind.__module__ in ("app.engine", "model.cache") for kind in found)


def an_answer(**more: Any) -> Answer:
    return Answer(**{"by": "one", "model": "demo", "saw": (), "with_history": True} | more)


def test_speed_is_that_of_the_tokens_after_the_first():
    """Seen to fail when the first token counted, which waits for the prompt to be read."""
    answer = an_answer()
    read = Written(0, "", 0, False, 2.0)
    tokens = [Written(0, "a", n, False, 2.5 + (n - 1) / 3) for n in range(1, 8)]
    app.writing.follow([read, *tokens], [answer], lambda: None)
    assert notes(answer) == "7 tokens · 3.0 tokens/s · first token after 2.50 s"
    one = an_answer(text="a", tokens=1, to_first=0.05, seconds=0.05, state="done")
    assert notes(one) == "1 token · 20 tokens/s · first token after 0.05 s"


def test_the_line_below_an_answer_says_how_it_ended():
    """Seen to fail when a cut answer looked like a whole one."""
    said = {state: notes(an_answer(state=state)) for state in ("done", "cut", "stopped", "failed")}
    assert said == {
        "done": "an empty answer",
        "cut": "reached the longest answer",
        "stopped": "stopped",
        "failed": "failed",
    }
    assert (
        notes(an_answer(left_out=1, state="done"))
        == "the oldest exchange had no room · an empty answer"
    )


def test_an_answer_that_was_taken_over_is_not_written_on():
    """Seen to fail when a run that was slow to end went on writing, and when none was cut."""
    one, two = an_answer(), an_answer()
    pieces = [Written(0, "a", 1, False), Written(1, "b", 1, False), Written(0, "c", 2, True)]
    follow(pieces, [one, two], lambda: None)
    assert (one.text, one.state, two.text, two.state) == ("ac", "cut", "b", "done")
    one.state = two.state = "stopped"
    follow(pieces, [one, two], lambda: None)
    assert (one.text, one.state, two.text, two.state) == ("ac", "stopped", "b", "stopped")


def test_an_error_ends_both_sides_of_a_comparison(visit, monkeypatch):
    """Seen to fail when the base's answer was left as being written."""
    page = visit()
    page.toggle(key="compares").set_value(True).run()

    def fails(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(app.engine, "stream", fails)
    say(page, "hello")
    both = conversation_of(page).exchanges[-1].answers
    assert [answer.state for answer in both] == ["failed", "failed"]
    assert all("not enough memory" in answer.trouble for answer in both)


def test_an_adapter_takes_the_commit_that_it_was_trained_on():
    """Seen to fail when the revision was left out, and when it was put to another model's name."""
    tuned = Tuned("run", Path("run"), "lab/model", "c" * 40)
    assert pinned("lab/model", tuned) == "lab/model@" + "c" * 40
    assert pinned("lab/model@main", tuned) == "lab/model@main"
    assert pinned("lab/other", tuned) == "lab/other"
    assert pinned("demo", Tuned("run", Path("run"), "demo", None)) == "demo"


def test_names_of_one_model_are_known_as_such(own_place, monkeypatch):
    """Seen to fail when only equal names were, and when a revision made another model."""
    monkeypatch.chdir(own_place.folder)
    (own_place.folder / "link").symlink_to("model")
    assert same_model("lab/model@main", "lab/model") and not same_model("lab/a", "lab/b")
    assert same_model("./model", str(own_place.folder / "link")) and not same_model("model", "runs")
    for name in ("a@b", "a@c"):
        (own_place.folder / name / "model").mkdir(parents=True)
    assert not same_model("./a@b/model", "./a@c/model")


def test_the_adapter_that_was_named_is_first_and_once(own_place):
    """Seen to fail when it came last, when it was there twice, and when it had no model."""
    runs = own_place.folder / "runs"
    named = str(runs / "one")
    tuned, _ = offered(PageConfig(runs=str(runs), adapter=named))
    assert [each.label for each in tuned] == [named, "two"]
    shutil.copytree(own_place.adapter("one"), own_place.folder / "alone")
    config = own_place.folder / "alone" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None})
    )
    given = PageConfig(runs=str(runs), adapter=str(config.parent), model="lab/model")
    assert offered(given)[0][0].model == "lab/model"
    without_model = PageConfig(runs=str(runs), adapter=str(config.parent))
    assert "add --model" in offered(without_model)[1]


def test_runs_offer_their_newest_checkpoint_first_and_spoilt_ones_nothing(own_place):
    """Seen to fail when the order was the other way, and when a spoilt run was an error."""
    one = own_place.folder / "runs" / "one"
    for step in (5, 1000):
        shutil.copytree(one / "adapter", one / "checkpoints" / f"step-{step:06}")
    (own_place.folder / "runs" / "two" / "config.json").write_text("{")
    labels = [tuned.label for tuned in tuned_in(own_place.folder / "runs")]
    assert labels == ["one", "one, step 1,000", "one, step 5"]


def test_the_models_opened_last_are_kept(own_place):
    """Seen to fail when those opened last were forgotten."""
    names = []
    for number in range(MOST_OPEN + 2):
        link = own_place.folder / f"link{number}"
        link.symlink_to("model")
        names.append(str(link))
    opened = {}
    for name in names:
        assert open_once(name, opened).name == name
    assert list(opened) == names[-MOST_OPEN:]


def test_the_sliders_begin_with_what_the_model_recommends(visit, own_place):
    """Seen to fail with defaults of our own, with sliders on that do nothing, and without help."""
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40}
    (own_place.files.folder / "generation_config.json").write_text(json.dumps(own))
    page = visit(place=own_place)
    found = {slider.key.split(" of ")[0]: slider for slider in page.slider}
    assert [found[name].value for name in ("temperature", "top_p", "top_k")] == [0.6, 0.9, 40]
    assert all(slider.help for slider in page.slider) and not found["top_p"].disabled
    found["temperature"].set_value(0.0).run()
    off = {slider.key.split(" of ")[0] for slider in page.slider if slider.disabled}
    assert off == {"top_p", "top_k", "min_p"}


def test_a_seed_is_one_draw_and_another_seed_another(visit):
    """Seen to fail when the seed of the page was not used."""
    said = {}
    for seed in (0, 0, 1):
        page = visit()
        page.slider(key=f"temperature of {page_folder(page)}").set_value(1.0)
        page.number_input(key="seed").set_value(seed)
        said.setdefault(seed, set()).add(say(page, "hello there").text)
    assert len(said[0]) == len(said[1]) == 1 and said[0] != said[1]


def test_a_rating_counts_and_what_is_not_learnt_is_told(visit):
    """Seen to fail when a thumb did nothing, and when the line about it was missing."""
    page = visit()
    answer = say(page, "hello")
    answer.state = "done"
    page.feedback(key=f"rating {answer.key}").set_value(0).run()
    assert answer.rating == 0 and "Not in the file: 1 rated down." in texts(page)
    conversation_of(page).let_go = 7
    assert "7 older exchanges are no longer kept." in texts(page.run())
