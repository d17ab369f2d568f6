"""Runs as tables: the curves against numpy, and whatever can be wrong with a run's files.

A few seconds, all of it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.run_charts import COLOURS
from app.run_curves import (
    MOST_POINTS,
    answers_to,
    downsampled,
    flags_that_differ,
    is_training,
    list_runs,
    read_run,
    smoothed,
    step_curve,
    version,
)
from app.run_data import read_data

REPORT = {
    "name": "rows.jsonl",
    "rows_read": 12,
    "kept": 9,
    "dropped": {"an empty answer": {"rows": 3, "first": [1, 4, 7]}},
    "cut": 2,
    "tokens": 1000,
    "target_tokens": 250,
    "histogram": {"upper_edges": [64, 128], "counts": [4, 5]},
}
ROWS = st.lists(
    st.tuples(st.none() | st.floats(0, 20), st.integers(1, 5000), st.floats(0.001, 10)),
    min_size=1,
    max_size=60,
)


def step_record(step: int, loss: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 50,
        "loss": loss,
        "lr": 1e-4 * step,
        "grad_norm": None if loss is None else 0.5,
        "tokens": 100,
        "target_tokens": 40,
        "tokens_per_second": 50.0,
        "seconds": 2.0,
    } | more


def make_run(folder: Path, records: list[dict[str, Any]], **flags: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_steps": None, "epochs": 1.0} | flags))
    (folder / "data.json").write_text(json.dumps({"sources": [REPORT]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def columns_of(rows: list[tuple[float | None, int, float]]) -> dict[str, np.ndarray]:
    records = [
        step_record(place + 1, loss, target_tokens=count, seconds=seconds)
        for place, (loss, count, seconds) in enumerate(rows)
    ]
    names = (*records[0],)
    return {n: np.array([math.nan if r[n] is None else r[n] for r in records]) for n in names}


@given(ROWS, st.sampled_from([1, 2, 5, 20, 200]))
def test_smoothed_loss_is_the_weighted_mean_that_its_definition_says(rows, window):
    """Against the sums written out, step by step.

    Seen to fail when target tokens did not count, when the mean began at 0, and when a step that
    was left out counted as a loss of 0.
    """
    columns = columns_of(rows)
    losses, counts = columns["loss"], columns["target_tokens"]
    fade = 1 - 1 / window
    for last, mean in enumerate(smoothed(losses, counts, window)):
        weights = counts[: last + 1] * np.power(fade, np.arange(last, -1, -1.0))
        known = np.isfinite(losses[: last + 1]) & (weights > 0)
        if known.any():
            assert mean == pytest.approx(
                np.average(losses[: last + 1][known], weights=weights[known]), rel=1e-9, abs=1e-12
            )


@given(st.floats(1e-3, 20), st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_smoothing_leaves_a_constant_loss_as_it_is(loss, counts):
    """Seen to fail when the mean began at 0 and when weights were not divided by."""
    means = smoothed(np.full(len(counts), loss), np.array(counts, dtype=float), 20)
    assert means == pytest.approx(np.full(len(counts), loss), rel=1e-12)


@given(ROWS, st.integers(1, 70))
def test_downsampling_keeps_means_sums_and_the_last_step(rows, most):
    """The mean over target tokens of all rows together, and their speed, are those of the steps.

    Seen to fail when a row's loss was its steps' plain mean, when a step that was left out counted
    with its target tokens, and when a row stood at its first step.
    """
    columns = columns_of(rows)
    curve = step_curve(columns, 5)
    points = downsampled(curve, most)
    assert len(points) <= most
    size = math.ceil(len(curve) / most)
    assert len(points) == math.ceil(len(curve) / size)
    for place, point in enumerate(points.itertuples()):
        part = slice(place * size, min(len(curve), (place + 1) * size))
        losses, counts = columns["loss"][part], columns["target_tokens"][part]
        known = np.isfinite(losses)
        if known.any():
            mean = np.average(losses[known], weights=counts[known])
            assert point.loss == pytest.approx(mean, rel=1e-9, abs=1e-12)
        else:
            assert math.isnan(point.loss)
        assert point.step == columns["step"][part][-1]
        assert point.tokens == columns["tokens"][: part.stop].sum()
        assert point.seconds == pytest.approx(columns["seconds"][: part.stop].sum())
        speed = columns["tokens"][part].sum() / columns["seconds"][part].sum()
        assert point.tokens_per_second == pytest.approx(speed)


def test_a_long_run_becomes_few_points(tmp_path):
    """Seen to fail when the curve was not sampled down."""
    run = read_run(make_run(tmp_path / "long", [step_record(s) for s in range(1, 3502)]), 20)
    assert MOST_POINTS / 2 < len(run.steps) <= MOST_POINTS
    assert run.steps["step"].iloc[-1] == 3501
    assert run.steps["tokens"].iloc[-1] == 350_100


def test_held_out_losses_stand_after_the_training_before_them(tmp_path):
    """The first stands before any step. Seen to fail when it stood one step too early."""
    records = [
        {"step": 0, "eval_loss": 2.0},
        step_record(1),
        step_record(2, tokens=150),
        {"step": 2, "eval_loss": 1.5},
        step_record(3),
        {"step": 3, "eval_loss": None},
    ]
    table = read_run(make_run(tmp_path / "run", records), 1).evaluations
    assert table["held_out"].tolist() == [2.0, 1.5]
    assert table["tokens"].tolist() == [0, 250]
    assert table["seconds"].tolist() == [0, 4]


def test_steps_left_out_are_counted_and_leave_a_gap(tmp_path):
    """Seen to fail when a loss of null became 0."""
    run = read_run(make_run(tmp_path / "run", [step_record(1), step_record(2, None)]), 1)
    assert run.steps_left_out == 1
    assert run.steps["loss"].isna().tolist() == [False, True]
    assert run.steps["grad_norm"].isna().tolist() == [False, True]


def test_planned_steps_are_those_of_the_flags(tmp_path):
    """By --max-steps, or by --epochs and the 50 steps of an epoch that the records tell of."""
    asked = make_run(tmp_path / "a", [step_record(1)], max_steps=70)
    by_epochs = make_run(tmp_path / "b", [step_record(1), step_record(7)], epochs=1.5)
    unknown = make_run(tmp_path / "c", [])
    assert [read_run(r, 1).steps_planned for r in (asked, by_epochs, unknown)] == [70, 75, None]


def test_a_growing_file_is_read_up_to_its_last_whole_line(tmp_path):
    """Seen to fail when `version` left out the metrics, so that what was kept never changed."""
    folder = make_run(tmp_path / "run", [step_record(1)])
    line = json.dumps(step_record(2, 0.5)) + "\n"
    versions = {version(folder)}
    for written, done in ((line[:30], 1), (line[30:-1], 2), ("\n", 2)):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(written)
        versions.add(version(folder))
        run = read_run(folder, 1)
        assert run.steps_done == len(run.steps) == done
        assert not run.problems
    assert len(versions) == 4


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"step": "9", "loss": 1}\n',
        b'{"step": 1' + b"0" * 400 + b', "loss": 1}\n',
        b'{"loss": 1}\n',
    ],
)
def test_a_damaged_line_is_passed_over(tmp_path, line):
    """Seen to fail when a step of 400 digits was taken for one."""
    folder = make_run(tmp_path / "run", [step_record(1)])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(line)
    assert read_run(folder, 1).steps_done == 1


@pytest.mark.parametrize("value", ["text", None, [1], {}, math.nan, math.inf, 10**400])
@pytest.mark.parametrize("name", ["loss", "lr", "tokens", "target_tokens", "seconds", "epoch"])
def test_a_value_that_is_no_number_is_a_gap(tmp_path, name, value):
    """Seen to fail when whatever stood there was given to float()."""
    records = [step_record(1), step_record(2, **{name: value}), step_record(3)]
    run = read_run(make_run(tmp_path / "run", records), 1)
    assert run.steps_done == 3
    assert np.isfinite(run.steps[["tokens", "seconds"]]).all(axis=None)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", '"text"'])
def test_a_damaged_config_is_one_sentence_and_the_curves_stay(tmp_path, content):
    """Seen to fail when the error of `saved_config` went through."""
    folder = make_run(tmp_path / "run", [step_record(1)])
    (folder / "config.json").write_text(content)
    run = read_run(folder, 1)
    assert run.problems == ("Its config.json is damaged, so its flags are not known.",)
    assert len(run.steps) == 1


def test_a_run_that_is_gone_is_one_sentence(tmp_path):
    run = read_run(tmp_path / "gone", 1)
    assert run.problems == ("Its folder is gone.",)
    assert run.steps.empty and run.evaluations.empty and run.samples.empty


def test_metrics_that_cannot_be_read_are_one_sentence(tmp_path):
    """Seen to fail when only ValueError was caught."""
    folder = make_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    assert read_run(folder, 1).problems == ("Its metrics.jsonl cannot be read: Is a directory.",)


def test_runs_are_listed_by_when_they_were_written_last(tmp_path):
    """Without what is no run. Seen to fail when they were sorted by name."""
    for place, name in enumerate(["b", "<img src=x>", "a"]):
        metrics = make_run(tmp_path / name, [step_record(1)]) / "metrics.jsonl"
        os.utime(metrics, (1e9 + place, 1e9 + place))
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert list(list_runs(tmp_path)) == ["a", "<img src=x>", "b"]
    assert list_runs(tmp_path / "nothing") == {}


def test_names_that_are_no_text_can_be_sent(tmp_path):
    """Seen to fail when names, prompts and answers were taken as they are."""
    answer = {"step": 1, "prompt": "\udc00", "sample": "\ud800"}
    folder = make_run(tmp_path / os.fsdecode(b"run-\xff"), [answer], seed="\udcff")
    run = read_run(folder, 1)
    other = read_run(make_run(tmp_path / "other", []), 1)
    cells = [run.name, *list_runs(tmp_path), *run.samples.iloc[0], *flags_that_differ([run, other])]
    cells += flags_that_differ([run, other]).to_numpy().ravel().tolist()
    for cell in cells:
        str(cell).encode()


def test_a_run_is_training_while_it_writes_and_until_it_has_an_adapter(tmp_path):
    """Seen to fail when the adapter was not looked for."""
    folder = make_run(tmp_path / "run", [step_record(1)])
    assert is_training(folder)
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    assert not is_training(folder)
    os.utime(folder / "metrics.jsonl")
    (folder / "adapter").mkdir()
    assert not is_training(folder)
    assert not is_training(tmp_path / "gone")


def test_only_flags_that_differ_are_told(tmp_path):
    """Seen to fail when flags that are equal stood there, and when --output did."""
    flags = {"lr": 1e-4, "seed": 1, "data": ["a", "b"], "lora_dropout": 0.0, "use_rslora": False}
    one = read_run(make_run(tmp_path / "one", [], output="x", **flags), 1)
    other = flags | {"lr": 2e-4, "data": ["a"], "use_rslora": True}
    two = read_run(make_run(tmp_path / "two", [], output="y", **other), 1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    table = flags_that_differ([one, two, read_run(tmp_path / "bad", 1)])
    assert table.to_dict("index") == {
        "--data": {"one": "a b", "two": "a"},
        "--lr": {"one": "0.0001", "two": "0.0002"},
        "--use-rslora": {"one": "off", "two": "on"},
    }
    assert flags_that_differ([one]).empty and flags_that_differ([]).empty


def test_answers_are_those_to_the_prompt_in_the_order_of_the_steps(tmp_path):
    """Seen to fail when all prompts' answers were given."""
    runs = [
        read_run(
            make_run(
                tmp_path / name,
                [
                    {"step": step, "prompt": prompt, "sample": f"{name} {prompt} {step}"}
                    for step in (0, 10)
                    for prompt in ("p", "q")
                ],
            ),
            1,
        )
        for name in ("one", "two")
    ]
    expected = ["one q 0", "two q 0", "one q 10", "two q 10"]
    assert answers_to("q", runs)["answer"].tolist() == expected
    assert answers_to("nobody asked", runs).empty


def test_data_becomes_tables(tmp_path):
    """Data sets of one name stay apart. Seen to fail when they did not."""
    folder = make_run(tmp_path / "run", [])
    (folder / "data.json").write_text(json.dumps({"sources": [REPORT, REPORT]}))
    data = read_data(folder)
    both = ["rows.jsonl", "rows.jsonl (2)"]
    assert data.sources["source"].tolist() == both
    assert data.sources.loc[0, "read":"learnt"].tolist() == [12, 9, 3, 2, 1000, 0.25]
    lengths = data.lengths[data.lengths["source"] == "rows.jsonl"]
    assert dict(zip(lengths["length"], lengths["rows"], strict=True)) == {
        "1 to 64": 4,
        "65 to 128": 5,
    }
    expected = {"source": both, "reason": ["an empty answer"] * 2, "rows": [3, 3]}
    pd.testing.assert_frame_equal(data.dropped, pd.DataFrame(expected))


def test_data_only_evaluated_on_says_so(tmp_path):
    """Seen to fail when the flags were not asked."""
    folder = make_run(tmp_path / "run", [], eval_data="rows.jsonl")
    (folder / "data.json").write_text(json.dumps({"sources": [REPORT, REPORT]}))
    assert read_data(folder).sources["source"].tolist() == ["rows.jsonl", "rows.jsonl, held out"]


def damaged_reports() -> list[str]:
    """data.json without each of its parts, and with each of them of another type."""
    contents = ["", "{", "[]", "{}", "null", '{"sources": 3}', '{"sources": [3]}', "\x00"]
    for name in REPORT:
        without = {key: value for key, value in REPORT.items() if key != name}
        contents.append(json.dumps({"sources": [without]}))
        if name != "name":
            contents.append(json.dumps({"sources": [REPORT | {name: "x"}]}))
            contents.append(json.dumps({"sources": [REPORT | {name: math.inf}]}))
    uneven = REPORT | {"histogram": {"upper_edges": [64], "counts": []}}
    return [*contents, json.dumps({"sources": [uneven]})]


@pytest.mark.parametrize("content", damaged_reports())
def test_damaged_data_is_one_sentence(tmp_path, content):
    """Seen to fail when one of the errors was not caught: KeyError, TypeError, ArithmeticError."""
    folder = make_run(tmp_path / "run", [])
    (folder / "data.json").write_text(content)
    with pytest.raises(ValueError, match=r"^This run's data\.json is damaged\.$"):
        read_data(folder)


def test_missing_data_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^This run has no data\.json yet\.$"):
        read_data(tmp_path)


def luminance(colour: str) -> float:
    """Relative luminance, as in WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("background", ["#ffffff", "#171614", "#0e1117"])
def test_curves_stand_out_from_light_and_dark_pages(background):
    """By 3 to 1, which WCAG 2.2 asks of graphics. Seen to fail when one of them was a pale blue."""
    for colour in COLOURS:
        light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour
    assert len(set(COLOURS)) == len(COLOURS)
