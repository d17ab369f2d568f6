"""Known bugs are put in, one by one, and the test that is named for each must fail.

What is deselected by default (`python -m pytest -m mutation`, minutes) copies the repository, makes
one change in the copy and runs one test there. In every run it is made sure that the table still
fits the code.

Seen to fail when a row's test did not notice its bug.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import ABSENT, NUMBERS, TOKENS, Mutant
from mutants_of_files import FILES

ROOT = Path(__file__).parents[1]
MUTANTS = NUMBERS + TOKENS + FILES
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "shared", "benchmarks")


def name(mutant: Mutant) -> str:
    return f"{mutant.file}: {mutant.bug}"


def run(place: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Runs tests in a copy of the repository."""
    words = ["-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=place, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT, tmp_path / "copy", ignore=NOT_COPIED)


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_every_row_still_fits_the_code(mutant: Mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    file, _, test = mutant.test.partition("::")
    assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("bug, reason, test", ABSENT, ids=lambda text: text[:40])
def test_what_cannot_be_put_in_as_one_line_has_a_reason_and_a_test(bug, reason, test):
    assert bug and reason
    file, _, name = test.partition("::")
    source = (ROOT / "tests" / file).read_text()
    assert not name or re.search(rf"^def {name}\(", source, re.MULTILINE)


def test_there_are_at_least_forty_and_no_two_are_the_same():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 40


@pytest.mark.mutation
@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_the_bug_is_noticed(mutant: Mutant, copy: Path):
    path = copy / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    ended = run(copy, mutant.test)
    # 1: a test failed. A file that cannot be imported ends it with 2, and an unknown test with 4.
    assert ended.returncode == 1, ended.stdout[-3000:]
    assert f"FAILED tests/{mutant.test}" in ended.stdout, ended.stdout[-3000:]


@pytest.mark.mutation
@pytest.mark.parametrize("file", sorted({mutant.test.split("::")[0] for mutant in MUTANTS}))
def test_without_a_bug_the_same_tests_pass(file: str, copy: Path):
    ended = run(copy, *{mutant.test for mutant in MUTANTS if mutant.test.startswith(f"{file}::")})
    assert ended.returncode == 0, ended.stdout[-3000:]
