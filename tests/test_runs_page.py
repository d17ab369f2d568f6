"""The page of the runs, drawn by Streamlit without a browser.

Twenty seconds, all of it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

NASTY = ["<img src=x>", "![a](http:x)", ":red[*loud*] $x$ `code`", "www.example.com"]
REPORT = {
    "name": "<img src=x>",
    "rows_read": 12,
    "kept": 9,
    "dropped": {"![a](http://x)": {"rows": 3, "first": [1, 4, 7]}},
    "cut": 2,
    "tokens": 1000,
    "target_tokens": 250,
    "histogram": {"upper_edges": [64, 128], "counts": [4, 5]},
}


def page(folder: str) -> None:
    """The script that draws it."""
    from pathlib import Path

    from app.runs_page import runs_page

    runs_page(Path(folder))


@pytest.fixture
def app(tmp_path: Path) -> AppTest:
    return AppTest.from_function(page, default_timeout=30, args=(str(tmp_path / "runs"),))


def make_run(folder: Path, steps: int, written: float | None = None, **flags: Any) -> Path:
    """A run of so many steps out of 8 with an evaluation and answers, written at that time."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_steps": 8} | flags))
    (folder / "data.json").write_text(json.dumps({"sources": [REPORT]}))
    append(folder, 0, steps)
    if written is not None:
        os.utime(folder / "metrics.jsonl", (written, written))
    return folder


def append(folder: Path, first: int, last: int) -> None:
    """Writes the records of the steps after `first`."""
    records: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        if step > first:
            records.append(
                {
                    "step": step,
                    "loss": 2 / step,
                    "lr": 1e-4,
                    "grad_norm": 1.0,
                    "tokens": 100,
                    "target_tokens": 40,
                    "tokens_per_second": 50.0,
                    "seconds": 2.0,
                }
            )
        if step % 4 == 0:
            answer = f"{folder.name} answers {step}: <script>alert(1)</script> ![a](http://x)"
            records.append({"step": step, "eval_loss": 2.0 - step / 8})
            records.append({"step": step, "prompt": "**Where?** <b>", "sample": answer})
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def drawn(app: AppTest) -> AppTest:
    assert not app.exception, app.exception
    return app


def texts(app: AppTest) -> list[str]:
    return [text.value for text in app.text]


def charts(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("vega_lite_chart")]


def test_without_runs_the_page_says_how_to_make_one(app):
    assert "no runs yet" in drawn(app.run()).info[0].value
    assert app.code[0].value == "python train.py --demo --lr 2e-4"


def test_the_newest_run_is_shown_first(app, tmp_path):
    """Seen to fail when the runs were sorted by name."""
    make_run(tmp_path / "runs" / "a", 8, 1e9)
    make_run(tmp_path / "runs" / "b", 8, 2e9 - 1e8)
    make_run(tmp_path / "runs" / "c", 8, 1e9 + 1)
    drawn(app.run())
    assert app.multiselect[0].options == ["b", "c", "a"]
    assert app.multiselect[0].value == ["b"]
    assert texts(app)[0] == ("b: 8 of 8 steps, held-out loss 2.0000 → 1.0000, 50 tokens a second")


def test_every_curve_is_drawn_and_described(app, tmp_path):
    """Seen to fail when a chart had no description."""
    make_run(tmp_path / "runs" / "a", 8)
    drawn(app.run())
    found = app.get("vega_lite_chart")
    assert len(found) == 6  # loss, three small ones, lengths, dropped rows
    described = [chart.proto.alt for chart in found]
    assert all(described) and len(set(described)) == len(described)
    fields = {layer["encoding"]["y"]["field"] for layer in charts(app)[0]["layer"]}
    assert fields == {"loss", "smoothed", "held_out"}


@pytest.mark.parametrize("axis", ["step", "tokens", "seconds"])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_every_view_is_drawn(app, tmp_path, axis, logarithmic):
    make_run(tmp_path / "runs" / "a", 8)
    app.run().radio[0].set_value(axis)
    app.toggle[0].set_value(logarithmic)
    app.select_slider[0].set_value(1)
    drawn(app.run())
    scale = charts(app)[0]["layer"][0]["encoding"]["y"]["scale"]
    assert (scale.get("type") == "log") == logarithmic


def test_runs_are_drawn_over_each_other_in_colours_that_they_keep(app, tmp_path):
    """Seen to fail when colours went by the place in the list of what is shown."""
    for name in ("a", "b", "c"):
        make_run(tmp_path / "runs" / name, 4, lr=ord(name) / 1000)

    def colours() -> dict[str, str]:
        scale = charts(app)[0]["layer"][0]["encoding"]["color"]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))

    app.run().multiselect[0].set_value(["a", "b", "c"])
    drawn(app.run())
    before = colours()
    assert len(set(before.values())) == 3
    assert app.dataframe[0].value.to_dict("index") == {
        "--lr": {"a": "0.097", "b": "0.098", "c": "0.099"}
    }
    app.multiselect[0].set_value(["c", "b"])
    drawn(app.run())
    assert colours() == {"c": before["c"], "b": before["b"]}


@pytest.mark.parametrize("name", NASTY)
def test_names_and_answers_are_nowhere_markdown(app, tmp_path, name):
    """Seen to fail when a run's name stood in a heading, and when an answer was `st.markdown`."""
    make_run(tmp_path / "runs" / name, 4, lr=1.0)
    make_run(tmp_path / "runs" / "second-run", 4, lr=2.0)
    (tmp_path / "runs" / "second-run" / "config.json").write_text("{")
    app.run().multiselect[0].set_value([name, "second-run"])
    drawn(app.run())
    assert any(text.startswith(f"{name}: 4 of 8 steps") for text in texts(app))
    assert any("<script>" in text for text in texts(app))
    active = [*app.markdown, *app.caption, *app.title, *app.header, *app.subheader]
    active += [*app.info, *app.warning, *app.error, *app.success]
    shown = [element.value for element in active]
    shown += [widget.label for widget in (*app.selectbox, *app.select_slider, *app.multiselect)]
    shown += [expander.label for expander in app.expander]
    for text in shown:
        assert not any(part in text for part in (name, "second-run", "alert", "Where", "http"))
    assert not app.get("html") and not app.get("iframe")
    assert not any(element.allow_html for element in app.markdown)


def test_answers_follow_the_step(app, tmp_path):
    """Who looks at the newest sees the newest; who went back stays there.

    Seen to fail when the choice of the step was not moved on, and when it always was.
    """
    folder = make_run(tmp_path / "runs" / "a", 4)
    drawn(app.run())
    assert "answers 4" in texts(app)[-1]
    append(folder, 4, 8)
    drawn(app.run())
    assert "answers 8" in texts(app)[-1]
    app.select_slider[1].set_value(0)
    drawn(app.run())
    assert "answers 0" in texts(app)[-1]
    append(folder, 8, 12)
    drawn(app.run())
    assert "answers 0" in texts(app)[-1]
    assert app.select_slider[1].options == ["0", "4", "8", "12"]


def test_a_line_that_is_just_being_written_does_no_harm(app, tmp_path):
    folder = make_run(tmp_path / "runs" / "a", 3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert texts(drawn(app.run()))[0].startswith("a: 3 of 8 steps")


def test_the_page_looks_again_only_while_a_run_is_training(app, tmp_path, monkeypatch):
    """Seen to fail when it always looked again, and when it never did."""
    folder = make_run(tmp_path / "runs" / "a", 3)

    fragment, asked = streamlit.fragment, []

    def watched(run_every: float | None) -> Any:
        asked.append(run_every is not None)
        return fragment(run_every=run_every)

    monkeypatch.setattr(streamlit, "fragment", watched)
    drawn(app.run())
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    drawn(app.run())
    os.utime(folder / "metrics.jsonl")
    drawn(app.run())
    (folder / "adapter").mkdir()
    drawn(app.run())
    assert asked == [True, False, True, False]


@pytest.mark.parametrize("state", ["training", "stopped", "finished"])
def test_a_run_says_whether_it_goes_on(app, tmp_path, state):
    folder = make_run(tmp_path / "runs" / "a", 4, 1e9 if state == "stopped" else None)
    if state == "finished":
        (folder / "adapter").mkdir()
    assert state in drawn(app.run()).markdown[0].value


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", '{"sources": [{}]}'])
@pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.jsonl"])
def test_a_damaged_file_costs_only_what_it_told(app, tmp_path, name, content):
    """Seen to fail when the errors of reading config.json or data.json went through."""
    folder = make_run(tmp_path / "runs" / "a", 4)
    (folder / name).write_bytes(content.encode("latin-1"))
    drawn(app.run())
    said = " ".join(texts(app))
    if name != "metrics.jsonl":
        assert "a: 4" in said
        assert name in said or (name, content) == ("config.json", '{"sources": [{}]}')


def test_a_run_without_a_step_yet_is_shown(app, tmp_path):
    make_run(tmp_path / "runs" / "a", 0)
    (tmp_path / "runs" / "a" / "metrics.jsonl").write_text("")
    assert texts(drawn(app.run()))[0] == "a: 0 of 8 steps"


def test_the_view_stays_while_another_page_is_shown(tmp_path):
    """Seen to fail when the widgets were not to persist."""

    def two_pages(folder: str) -> None:
        from pathlib import Path

        import streamlit

        from app.runs_page import runs_page

        if "other" in streamlit.session_state:
            streamlit.title("Other")
        else:
            runs_page(Path(folder))

    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, 4)
    app = AppTest.from_function(two_pages, default_timeout=30, args=(str(tmp_path / "runs"),))
    app.run().multiselect[0].set_value(["a", "b"])
    app.radio[0].set_value("tokens")
    app.select_slider[0].set_value(50)
    app.toggle[0].set_value(True)
    drawn(app.run())
    app.select_slider[1].set_value(0)
    drawn(app.run())
    app.session_state["other"] = True
    assert drawn(app.run()).title[0].value == "Other" and not app.multiselect
    del app.session_state["other"]
    drawn(app.run())
    assert app.multiselect[0].value == ["a", "b"]
    assert app.radio[0].value == "tokens"
    assert [slider.value for slider in app.select_slider] == [50, 0]
    assert app.toggle[0].value


def test_a_deleted_run_disappears(app, tmp_path):
    """From the choice too."""
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, 4)
    app.run().multiselect[0].set_value(["a", "b"])
    drawn(app.run())
    shutil.rmtree(tmp_path / "runs" / "a")
    drawn(app.run())
    assert app.multiselect[0].value == ["b"]
    shutil.rmtree(tmp_path / "runs")
    assert "no runs yet" in drawn(app.run()).info[0].value


def test_nothing_chosen_is_a_friendly_sentence(app, tmp_path):
    make_run(tmp_path / "runs" / "a", 4)
    app.run().multiselect[0].set_value([])
    assert "Choose a run" in drawn(app.run()).info[0].value


def test_unchanged_files_are_read_once(app, tmp_path, monkeypatch):
    """Seen to fail when runs were read without keeping them."""
    from lora.run_folder import RunFolder

    folder, read = make_run(tmp_path / "runs" / "a", 4), []
    records = RunFolder.records
    monkeypatch.setattr(RunFolder, "records", lambda self: read.append(1) or records(self))
    drawn(app.run())
    first = len(read)
    for _ in range(3):
        drawn(app.run())
    assert len(read) == first
    append(folder, 4, 5)
    drawn(app.run())
    assert len(read) == first + 1
