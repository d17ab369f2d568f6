"""Whole commands as a user starts them: how long they take, and how much memory.

A child's peak begins with its parent's, as the kernel counts it. So a benchmark that measures
whole commands imports nothing heavy itself.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
# The Hub's template of Llama 3, shortened: the embedded demo model has none, and others need one.
TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' "
    "+ message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def model_folder(name: str, place: Path) -> str:
    """The folder of a model; of the demo, a copy in `place` that others can chat with, too."""
    if name != "demo":
        return name
    folder = place / "demo"
    shutil.copytree(ROOT / "model" / "demo", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


@dataclass(frozen=True)
class Measured:
    """One process, from its start to its end.

    Attributes:
        out: what it wrote to stdout.
        first: seconds until the first of that.
        seconds: until the end.
        cpu: processor seconds of all its threads.
        peak: the most memory it held at once, in bytes, files that it mapped included.
        anonymous: bytes of memory of its own, not mapped from files, when it first wrote; Linux
            only, else 0.
    """

    out: str
    first: float
    seconds: float
    cpu: float
    peak: int
    anonymous: int


def measure(command: Sequence[str], threads: int, **environment: str) -> Measured:
    """Runs a command to its end. Raises RuntimeError, with its stderr, if it fails."""
    sized = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    paths = {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | QUIET | sized | paths | environment,
        )
        assert process.stdout is not None
        begin = os.read(process.stdout.fileno(), 1)
        first, anonymous = time.perf_counter() - started, anonymous_bytes(process.pid)
        out = begin + process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{errors.read().decode()[-3000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(out.decode(), first, seconds, cpu, peak, anonymous)


def anonymous_bytes(process: int) -> int:
    """A process's memory that is no file's; 0 where the kernel does not tell."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def in_turns(
    commands: Mapping[str, Sequence[str]], rounds: int, threads: int, **environment: str
) -> dict[str, list[Measured]]:
    """Each command once a round, one after the other."""
    results: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            results[name].append(measure(command, threads, **environment))
    return results


def print_table(results: Mapping[str, Sequence[Measured]], *fields: str) -> None:
    """Medians, and in brackets the first row's advantage: how many times as much others take."""
    print(f"{'':24}" + "".join(f"{name:>22}" for name in fields))
    own: dict[str, float] = {}
    for side, runs in results.items():
        cells = []
        for field in fields:
            value = statistics.median(getattr(run, field) for run in runs)
            shown = f"{value / 1e6:.0f} MB" if field in ("peak", "anonymous") else f"{value:.2f} s"
            ratio = value / own.setdefault(field, value) if value else 1
            cells.append(f"{shown} ({ratio:.2f})")
        print(f"{side:24}" + "".join(f"{cell:>22}" for cell in cells))
