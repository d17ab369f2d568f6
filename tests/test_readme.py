"""The README's claims: its commands run, and the files it names exist.

Seen to fail when a command's flag was misspelt and when a named file was moved.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("&&")[-1].strip() for block in BASH for line in block.splitlines() if line]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--model demo" in c])
def test_a_command_on_the_demo_works_as_it_stands(command):
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_every_other_command_has_flags_that_exist():
    """Models from the network are left out; that the command line is understood is not."""
    others = [c for c in COMMANDS if c.startswith("python chat.py ask") and "demo" not in c]
    assert others
    usage = subprocess.run(
        [sys.executable, "chat.py", "ask", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    for command in others:
        flags = set(re.findall(r"--[a-z-]+", usage))
        assert set(re.findall(r"--[a-z-]+", command)) <= flags, command


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`([\w./-]+\.(?:py|md|txt|toml))`", README))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]
