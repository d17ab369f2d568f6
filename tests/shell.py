"""Commands as a user types them, without the two seconds that every process needs for PyTorch.

A copy of this process, which has PyTorch already, forgets whatever of ours it has imported and runs
the script as Python would: with its own arguments, working directory, environment and output.
"""

from __future__ import annotations

import os
import runpy
import shlex
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# What reads the environment when it is imported, and what is ours, is imported anew.
FORGOTTEN = {"huggingface_hub", "app", "chat", "data", "export", "lora", "model", "publish"}
FORGOTTEN |= {"run", "train"}
# What decides where something may be written or asked for; a test says what of it there is.
HIDDEN = ("HF_", "XDG_", "HUGGING", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")


@dataclass(frozen=True)
class Outcome:
    """What a command ended with: its exit status, or minus a signal, and what it printed."""

    status: int
    out: str
    err: str


def shell(command: str, folder: Path, outputs: Path, env: Mapping[str, str]) -> Outcome:
    """Runs `train.py ...`, `chat.py ...`, `export.py ...` or `python -m data.inspect ...`.

    Args:
        command: as in a shell, with quotes and without variables.
        folder: the working directory.
        outputs: where to keep what is printed, elsewhere.
        env: what is set besides the environment of this process.
    """
    words = shlex.split(command)
    files = [outputs / name for name in ("out", "err")]
    process = os.fork()
    if process == 0:
        status = 70
        try:
            become(folder, files, env)
            status = run(words)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Outcome(status, *(file.read_text(errors="replace") for file in files))


def become(folder: Path, files: list[Path], env: Mapping[str, str]) -> None:
    """Makes this process what a shell would start."""
    torch.set_num_threads(1)  # its threads are not copied, and it would wait for them
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "r" if n == 0 else "w") for n in range(3))
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith(HIDDEN)]:
        del os.environ[name]
    os.environ |= env
    for name in [name for name in sys.modules if name.partition(".")[0] in FORGOTTEN]:
        del sys.modules[name]


def run(words: list[str]) -> int:
    """The script's exit status, or the module's behind `python -m`."""
    is_module = words[:2] == ["python", "-m"]
    name, *sys.argv[1:] = words[2:] if is_module else words
    sys.argv[0] = name if is_module else str(ROOT / name)
    sys.path[0:0] = [str(ROOT)]
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    return 0
