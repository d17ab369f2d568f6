"""What is answered before anything heavy is imported: help, and the refusal of a wrong flag.

Each command runs as the script that it is, in an interpreter of its own, and what it has imported
by then is asserted, not the time. About 10 seconds. Seen to fail when train.py read its flags
behind its imports, when a value was only checked behind them, when chat.py, export.py or
lora/train_config.py imported PyTorch at the top, and when data/hub.py did the client of the Hub.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "numpy", "pyarrow", "streamlit", "safetensors", "huggingface_hub"]
RUN = f"""
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    print("ended with", ended.code, [name for name in {HEAVY} if name in sys.modules])
"""


def answer(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a script says; the last line tells its exit status and which of `HEAVY` it imported."""
    return subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    "script, arguments",
    [("train.py", []), ("export.py", []), ("chat.py", []), ("chat.py", ["ask"])],
)
def test_help_is_there_before_anything_heavy(script: str, arguments: list[str]):
    done = answer(script, *arguments, "--help")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("usage: ") and len(lines) > 10 and done.stderr == ""
    assert lines[-1] == "ended with 0 []"


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("train.py", ["--batchsize", "3"], "unknown flag --batchsize"),
        ("train.py", ["--lr", "fast"], "argument --lr: invalid float value"),
        ("train.py", ["--lr", "-1"], "--lr is -1.0; it must be above 0"),
        ("train.py", ["--demo", "--dtype", "int4"], "--dtype is int4; choose one of"),
        ("export.py", ["run", "--megred", "x"], "unknown flag --megred"),
        ("export.py", ["run"], "nothing to do"),
        ("export.py", ["run", "--merged", str(ROOT)], "which holds something already"),
        ("chat.py", ["--prot", "1"], "unknown flag --prot"),
        ("chat.py", ["--port", "0"], "port is 0"),
        ("chat.py", ["ask"], "the following arguments are required"),
        ("chat.py", ["ask", "hi", "--seed", "-1"], "seed is -1"),
    ],
)
def test_a_wrong_flag_is_told_before_anything_heavy(script, arguments, message):
    done = answer(script, *arguments)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == "ended with 2 []\n"
