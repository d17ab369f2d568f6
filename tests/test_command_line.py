"""The command line that a dataclass becomes, and how a command ends.

Each of these bugs was put into the code once and seen to fail here: underscores refused; hyphens
put into values too, or into text behind `--`; abbreviations accepted; defaults left out of the
help; a percent sign breaking the help; argparse's usage lines printed before the error; a bug's
traceback swallowed; status 1.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields

import pytest

from data.command_line import argument, option, parse, run_command


@dataclass(frozen=True)
class Config:
    """A question with some flags."""

    prompt: str = argument("the question, as one argument, of which 100% is read")
    some_name: str = option("de_mo", "a text whose default has an underscore")
    max_tokens: int = option(
        512,
        "a whole number, explained at such a length that its explanation "
        "cannot possibly stand on one line of a terminal of 80 columns",
    )
    top_p: float = option(0.95, "a number, 95% by default")
    seed: int | None = option(None, "a number that may be left out")
    is_loud: bool = option(False, "a switch")


def parsed(line: str) -> Config:
    return parse(Config, shlex.split(line), "ask.py", "Asks.")


def refusal(capsys, line: str) -> str:
    """What a mistake is answered with: one line on stderr, and status 2."""
    with pytest.raises(SystemExit) as caught:
        parsed(line)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("; see ask.py --help\n")
    assert err.startswith("ask.py: ")
    return err


def help_text(capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    out, err = capsys.readouterr()
    assert caught.value.code == 0 and err == ""
    return out


def test_without_flags_the_defaults_hold():
    assert parsed("hi") == Config("hi", "de_mo", 512, 0.95, None, False)


def test_every_flag_is_read_in_its_type_before_and_behind_the_argument():
    wanted = Config("what is it?", "x", 7, 1.0, 3, True)
    flags = "--some-name x --max-tokens 7 --top-p 1 --seed 3 --is-loud"
    assert parsed(f"'what is it?' {flags}") == wanted
    assert parsed(f"{flags} 'what is it?'") == wanted
    assert type(parsed(f"{flags} hi").top_p) is float


@pytest.mark.parametrize(
    "form", ["--some-name {}", "--some_name {}", "--some-name={}", "--some_name={}"]
)
def test_dash_and_underscore_are_the_same_in_a_flag_and_kept_in_a_value(form):
    for value in ("a_b", "a-b", "a_b=c_d", "_"):
        assert parsed(f"{form.format(value)} hi").some_name == value


def test_text_is_kept_as_it_is():
    texts = ("a_b --some_name c_d", "--some_name what?", "-", "-5", "", "100%", "{x}", "_--_")
    for text in texts:
        assert parsed(shlex.quote(text)).prompt == text
    assert parsed("-- --some_name").prompt == "--some_name"
    assert parsed("--some_name x -- --a_b") == Config("--a_b", "x")


def test_a_negative_number_is_a_value():
    assert parsed("--top-p -1 hi").top_p == -1.0


@pytest.mark.parametrize(
    "line, message",
    [
        ("--max-tokens many hi", "argument --max-tokens: invalid int value: 'many'"),
        ("--max_tokens 1.5 hi", "argument --max-tokens: invalid int value: '1.5'"),
        ("--top-p 0,9 hi", "argument --top-p: invalid float value: '0,9'"),
        ("--seed none hi", "argument --seed: invalid int value: 'none'"),
        ("--max-tokens 'a\nb' hi", "invalid int value: 'a\\nb'"),
        ("--max-tokens", "argument --max-tokens: expected one argument"),
        ("hi --some-name", "argument --some-name: expected one argument"),
        ("--is-loud=yes hi", "'yes'"),
        ("", "required: PROMPT"),
        ("--seed 3", "required: PROMPT"),
        ("hi there you", "unexpected argument 'there'; put quotes around a text with blanks"),
        ("hi --tokens", "unknown flag --tokens"),
        ("hi --max-token 7", "unknown flag --max-token (did you mean --max-tokens?)"),
        ("hi --max 7", "unknown flag --max"),
        ("hi --somename=x", "unknown flag --somename (did you mean --some-name?)"),
        ("hi --is_lout", "unknown flag --is_lout (did you mean --is-loud?)"),
        ("hi --zzz", "unknown flag --zzz; see"),
        ("hi -x", "unknown flag -x; see"),
    ],
)
def test_a_mistake_is_named_in_one_line(line, message, capsys):
    assert message in refusal(capsys, line)


def test_the_help_names_every_flag_with_its_text_and_default(capsys, monkeypatch):
    text = " ".join(help_text(capsys, monkeypatch).split())
    assert "Asks." in text and "PROMPT" in text
    for field in fields(Config):
        assert field.metadata["help"] in text
    for field in fields(Config)[1:]:
        assert f"--{field.name.replace('_', '-')}" in text
    for default in ("de_mo", "512", "0.95"):
        assert f"(default: {default})" in text
    assert "None" not in text and "False" not in text


def test_the_help_fits_into_80_columns(capsys, monkeypatch):
    lines = help_text(capsys, monkeypatch).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 10


def ending(command) -> int:
    return run_command("ask.py", command)


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


def test_a_command_that_works_ends_with_0_and_says_nothing(capsys):
    assert ending(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("no such model: 'x'"), "ask.py: no such model: 'x'\n"),
        (ValueError("two\n  lines\n"), "ask.py: two lines\n"),
        (OSError("disk full"), "ask.py: disk full\n"),
        (FileNotFoundError(2, "No such file", "a"), "ask.py: a: No such file; see what is there\n"),
        (OSError(28, "No space", "a", None, "b"), "ask.py: a to b: No space; make room\n"),
        (
            RuntimeError("can't start new thread"),
            "ask.py: can't start new thread; raise the limit (ulimit -u), or end other programs\n",
        ),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), None),
    ],
)
def test_what_a_user_can_cause_becomes_one_line_and_status_2(error, line, capsys):
    assert ending(raising(error)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert line is None or err == line


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError(), RuntimeError()])
def test_a_bug_of_ours_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error)):
        ending(raising(error))
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough_is_no_mistake(capsys, monkeypatch):
    """As in `python chat.py ask ... | head -1`; what is written after that must not fail either."""
    monkeypatch.setattr("sys.stdout", sys.stdout)
    assert ending(raising(BrokenPipeError(32, "Broken pipe"))) == 0
    print("the last words", flush=True)
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_ends_with_130_as_in_a_shell(capsys):
    assert ending(raising(KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_status_that_the_command_chose_itself_is_kept():
    with pytest.raises(SystemExit) as caught:
        ending(raising(SystemExit(3)))
    assert caught.value.code == 3
