"""The README's claims: its commands are understood, its table is complete, its files exist.

Seen to fail when a command's flag was misspelt, when a flag was added, and when a file was moved.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("&&")[-1].strip() for block in BASH for line in block.splitlines() if line]


def help_of(*program: str) -> str:
    """What --help prints, without line breaks in the texts."""
    return subprocess.run(
        [sys.executable, *program, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def flag_table() -> str:
    """Every flag of train.py with its meaning and default, as a table."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    found = re.findall(
        r"^  (--[\w-]+)[^\n]*?(?: {2,}|\n +)(\S.*)$", help_of("train.py"), re.MULTILINE
    )
    for flag, text in found:
        meaning, default = re.fullmatch(r"(.*?)(?: \(default: (.*)\))?", text).groups(default="")
        rows.append(f"| `{flag}` | {default} | {meaning} |")
    return "\n".join(rows)


def test_every_flag_of_training_stands_in_the_table_as_in_its_help():
    assert len(flag_table().splitlines()) > 35
    assert flag_table() in README, f"put this into the README:\n{flag_table()}"


@pytest.mark.parametrize(
    "program", [("chat.py", "ask"), ("chat.py",), ("train.py",), ("-m", "data.inspect")]
)
def test_every_command_has_flags_that_exist(program: tuple[str, ...]):
    """Models from the network are left out; that the command line is understood is not."""
    begun = " ".join(("python", *program))
    commands = [c for c in COMMANDS if c.startswith(begun)]
    if program == ("chat.py",):
        commands = [c for c in commands if not c.startswith("python chat.py ask")]
    assert commands
    flags = set(re.findall(r"--[a-z-]+", help_of(*program)))
    for command in commands:
        assert set(re.findall(r"--[a-z-]+", command)) <= flags, command


def test_the_first_command_is_the_demo_which_its_own_tests_run():
    """tests/test_demo_training.py trains it and asks; tests/test_chat_browser.py opens the page."""
    assert COMMANDS[:3] == [
        "python train.py --demo --lr 2e-4",
        "python chat.py",
        'python chat.py ask "Where does Anna live?" --model demo --adapter runs/demo-demo/adapter',
    ]


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`([\w./-]+\.(?:py|md|txt|toml))`", README))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]
