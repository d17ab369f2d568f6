"""The promises about the shape of the code: who imports whom, how long things are, what is absent.

Seen to fail when model/ imported data/, when a function grew to sixty lines, and when `torch.load`
stood in a file.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "model": set(),
    "lora": set(),
    "data": set(),
    "app": {"model", "lora", "data"},
    "publish": {"model", "lora", "data"},
    "chat": {"app", "data", "model"},
    "run": {"model", "lora", "data"},
    "train": {"model", "lora", "data", "run"},
    "export": {"model", "lora", "data", "publish"},
}
FORBIDDEN = {"transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "pickle"}
FILES = sorted(
    file
    for name in MAY_IMPORT
    for file in [ROOT / f"{name}.py", *ROOT.glob(f"{name}/**/*.py")]
    if file.exists()
)


def imported_packages(file: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            packages.add((node.module or "").partition(".")[0])
    return packages


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file: Path):
    package = file.relative_to(ROOT).parts[0].removesuffix(".py")
    imported = imported_packages(file)
    assert imported & set(MAY_IMPORT) - {package} <= MAY_IMPORT[package]
    assert not imported & FORBIDDEN


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_can_be_taken_in_at_one_sitting(file: Path):
    source = file.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} is too long"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_runs_or_unpacks_what_a_stranger_wrote(file: Path):
    source = file.read_text()
    for pattern in (r"torch\.(load|save)\b", r"(?<![.\w])(eval|exec)\(", r"shell=True", r"except:"):
        assert not re.search(pattern, source), pattern


def test_only_data_knows_that_there_is_a_hub():
    for file in FILES:
        if file.parts[-2] in ("model", "lora"):
            assert "huggingface_hub" not in imported_packages(file)
