"""`python -m data.inspect`: what it shows of a data set, and what it refuses. About 10 seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, hub
from hub_templates import HELLO
from token_data import FLAWED, GOOD, random_rows, small_chat_format, write_jsonl

from data import inspect
from data.chat_format import ChatFormat, Message
from data.dataset import tokenize
from data.sources import Source

ROOT = Path(__file__).parents[1]
ESCAPES = re.compile(r"\033\[\d+m")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    small_chat_format(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def chat_format(tmp_path: Path, model: Path) -> ChatFormat:
    return small_chat_format(model)


def shown(capsys: pytest.CaptureFixture, data: Any, model: Path | str, *flags: Any) -> str:
    """What is printed; nothing may stand on stderr."""
    status = inspect.main([str(data), "--model", str(model), *map(str, flags)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def refused(capsys: pytest.CaptureFixture, data: Any, model: Path | str, *flags: Any) -> str:
    """The one line of a refusal."""
    assert inspect.main([str(data), "--model", str(model), *map(str, flags)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("data.inspect: ")
    assert err.count("\n") == 1
    return err


def write(tmp_path: Path, rows: list[Any]) -> Source:
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_the_counts_are_those_of_the_data(tmp_path, model, chat_format, capsys):
    """Seen to fail when duplicates were counted with their originals."""
    rows = [*random_rows(97), GOOD, GOOD, GOOD, *list(FLAWED.values())[:2], FLAWED["empty turn"]]
    source = write(tmp_path, rows)
    kept, report = tokenize(source, chat_format, 120, "assistant")
    out = shown(capsys, source.name, model, "--max-length", 120, "--max-dropped", 1)
    fields = dict(re.findall(r"^(data|model|rows|duplicates|cut|tokens|targets) +(.+)$", out, re.M))
    assert fields["data"] == f"{source.name}, 1 file"
    assert fields["model"] == f"{model} (Llama 3.1)"
    assert fields["rows"] == f"103 read, {len(kept)} kept, {103 - len(kept)} dropped"
    assert fields["duplicates"].startswith("2 of")
    assert fields["cut"].startswith(f"{report.cut} of")
    assert re.search(rf"{report.tokens:,}, .* {kept.lengths.max()} in the longest", out)
    assert fields["targets"].startswith(f"{report.target_tokens:,} tokens, ")
    assert re.search(r"^empty turn +1  103$", out, re.M)
    assert re.search(r"^unknown role +1  102$", out, re.M)


def test_the_histogram_has_a_bar_for_every_length(tmp_path, model, chat_format, capsys):
    source = write(tmp_path, random_rows(300))
    kept, _ = tokenize(source, chat_format, 2048, "assistant")
    out = shown(capsys, source.name, model)
    bins = re.findall(r"^ *(\d+) to (\d+) +(\d+) *(#*)$", out, re.M)
    counts = [int(count) for _, _, count, _ in bins]
    assert sum(counts) == 300
    for low, high, count, bar in bins:
        assert ((kept.lengths >= int(low)) & (kept.lengths <= int(high))).sum() == int(count)
        assert len(bar) >= 50 * int(count) / max(counts) > len(bar) - 1


def hello_rows() -> list[Any]:
    return [GOOD, {"messages": HELLO}]


def test_rows_are_shown_with_their_targets_between_marks(tmp_path, model, capsys):
    """Seen to fail when rows were counted from 0, and when --train-on was not heeded."""
    source = write(tmp_path, hello_rows())
    out = shown(capsys, source.name, model, "--rows", "2")
    assert "--- row 1" not in out
    text = out.partition("--- row 2\n")[2]
    answers = [turn["content"] for turn in HELLO if turn["role"] == "assistant"]
    assert re.findall("«(.*?)»", text, re.S) == [f"{answer}<|eot_id|>" for answer in answers]
    assert text.count("<|begin_of_text|>") == 1
    assert f"user<|end_header_id|>\n\n{HELLO[0]['content']}<|eot_id|>" in text
    assert "\033" not in out
    both = shown(capsys, source.name, model, "--rows", "2,1", "--train-on", "last")
    assert both.index("--- row 1") < both.index("--- row 2")
    assert re.findall("«(.*?)»", both, re.S) == ["Hello<|eot_id|>", f"{answers[1]}<|eot_id|>"]


def test_colours_say_the_same(tmp_path, model, capsys, monkeypatch):
    """Targets are green, control tokens dim, and a text that spells one is not; on a terminal."""
    poisoned = {"messages": [HELLO[0], {"role": "assistant", "content": "a<|eot_id|>b"}]}
    source = write(tmp_path, [poisoned])
    plain = shown(capsys, source.name, model, "--rows", "1")
    colored = shown(capsys, source.name, model, "--rows", "1", "--color")
    assert "«a<|eot_id|>b<|eot_id|>»" in plain
    assert "\033[32ma<|eot_id|>b\033[0m\033[32m\033[2m<|eot_id|>\033[0m" in colored
    assert ESCAPES.sub("", colored) == plain.replace("«", "").replace("»", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert shown(capsys, source.name, model, "--rows", "1") == colored


def test_ids_are_shown_one_a_line(tmp_path, model, chat_format, capsys):
    source = write(tmp_path, hello_rows())
    rendered = chat_format.render([Message(**turn) for turn in HELLO])
    for flags in ([], ["--color"]):
        out = shown(capsys, source.name, model, "--rows", "2", "--ids", *flags)
        lines = re.findall(r"^ +(\d+) +(\d+) ([* ]) (control )?", ESCAPES.sub("", out), re.M)
        assert [int(place) for place, *_ in lines] == list(range(len(rendered.ids)))
        assert [int(token) for _, token, *_ in lines] == rendered.ids
        assert [mark == "*" for _, _, mark, _ in lines] == rendered.by_assistant
        control = set(chat_format.tokenizer.control_ids.values())
        assert [bool(c) for *_, c in lines] == [token in control for token in rendered.ids]


def test_a_cut_is_shown_where_training_cuts(tmp_path, model, chat_format, capsys):
    """The last row loses all its targets."""
    long = {"messages": [{"role": "user", "content": "why? " * 99}, HELLO[1]]}
    source = write(tmp_path, [*hello_rows() * 5, long])
    rendered = chat_format.render([Message(**turn) for turn in HELLO])
    most = len(rendered.ids) - 3
    out = shown(capsys, source.name, model, "--rows", "2,11", "--max-length", most, "--ids")
    targets = sum(rendered.by_assistant[:most])
    assert f"--- row 2\n{most} tokens, {targets} targets, 3 cut off" in out
    second = out.partition("--- row 11\n")[2]
    assert "dropped: nothing left to learn after the cut" in second
    assert len(re.findall(r"^ +\d+ +\d+ ", second, re.M)) == most


def test_a_flawed_row_is_shown_with_its_flaw(tmp_path, model, capsys):
    source = write(tmp_path, [*[GOOD] * 90, FLAWED["unknown role"], FLAWED["invalid UTF-8"]])
    out = shown(capsys, source.name, model, "--rows", "91,92")
    assert '--- row 91\ndropped: unknown role\n{"conversations": [{"from": "alien"' in out
    assert "--- row 92\ndropped: invalid UTF-8\n" in out


def test_a_text_cannot_command_the_terminal(tmp_path, model, capsys):
    """Seen to fail when texts were printed as they are."""
    evil = "\033[2J\033]0;title\007 \x9b1m \r \u202e tab\there"
    row = {"messages": [{"role": role, "content": evil} for role in ("user", "assistant")]}
    source = write(tmp_path, [row])
    for flag in ([], ["--ids"]):
        out = shown(capsys, source.name, model, "--rows", "1", *flag)
        assert not set(out) & set("\033\007\x9b\r\u202e\t")
        assert "\\x1b" in out


def test_what_training_would_refuse_is_shown_and_refused(tmp_path, model, capsys):
    source = write(tmp_path, [GOOD] * 9 + [FLAWED["empty turn"]])
    assert "9 kept, 1 dropped" in shown(capsys, source.name, model)
    assert "--strict-data allows none" in refused(capsys, source.name, model, "--strict-data")
    assert "--max-dropped allows 5%" in refused(capsys, source.name, model, "--max-dropped", 0.05)
    assert inspect.main([source.name, "--model", str(model), "--strict-data"]) == 2
    assert "empty turn" in capsys.readouterr().out

    nothing = write(tmp_path, [FLAWED["empty turn"]])
    assert "nothing is left" in refused(capsys, nothing.name, model, "--max-dropped", 1)
    assert "has no rows" in refused(capsys, write(tmp_path, []).name, model)


@pytest.mark.parametrize("rows", ["0", "-1", "a", "1,,2", "", "1.5", "²"])
def test_numbers_of_rows_are_checked(tmp_path, model, capsys, rows):
    source = write(tmp_path, hello_rows())
    assert "give numbers from 1 on" in refused(capsys, source.name, model, f"--rows={rows}")


def test_a_row_behind_the_last_is_refused(tmp_path, model, capsys):
    source = write(tmp_path, hello_rows())
    assert "there is no row 3" in refused(capsys, source.name, model, "--rows", "1,3")


def test_the_demo_needs_no_model_and_no_flags(capsys):
    assert inspect.main(["demo", "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "demo (Llama 3.1)" in out
    assert "«" in out


def inspected(name: str, server: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data.inspect", name],
        env=server.environment(home),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_no_weights_of_the_default_model_are_downloaded(tmp_path: Path, model: Path):
    """Run as a user runs it."""
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    write_jsonl(tmp_path / "data" / "train.jsonl", hello_rows())
    with hub({inspect.DEFAULT_MODEL: model}, {"lab/chats": tmp_path / "data"}) as server:
        child = inspected("lab/chats", server, tmp_path / "home")
        assert child.returncode == 0, child.stderr
        assert f"lab/chats at {server.refs['datasets/lab/chats']['main']}, 1 file" in child.stdout
        assert server.asked_for("tokenizer.json")
        assert not server.asked_for(".safetensors")
        missing = inspected("lab/none", server, tmp_path / "home")
    assert missing.returncode == 2
    assert missing.stderr.startswith("data.inspect: no folder lab/none here, and no dataset at")
    assert missing.stderr.count("\n") == 1
