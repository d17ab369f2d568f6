"""What the code may not do at all: each rule is tried on the very line that it forbids.

Read as a syntax tree, so that a word in a comment or a text is no finding. Each rule was taken away
once, and the lines of `FORBIDDEN_LINES` that it is there for were then seen to pass as allowed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("app", "data", "lora", "model", "publish")
FILES = sorted(
    [*ROOT.glob("*.py"), *(file for name in PRODUCT for file in ROOT.rglob(f"{name}/**/*.py"))]
)

# Reading with these can run what a stranger wrote, or write where a stranger says.
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml",
    "tarfile", "zipfile", "imp",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load", "torch.save", "torch.hub.load", "os.system", "os.popen", "numpy.load",
    "np.load", "shutil.unpack_archive", "runpy.run_path", "st.html", "components.html",
}  # fmt: skip
METHODS = {"extract", "extractall"}
FLAGS = {"shell", "unsafe_allow_html", "trust_remote_code", "allow_pickle"}

# What all processes must do together, and how a process is told from the others.
TOGETHER = {
    "all_reduce", "all_gather", "broadcast", "barrier", "gather", "scatter", "reduce",
    "sum_gradients", "main_first",
}  # fmt: skip
OF_WORLD = {"sum", "any", "least"}
ALONE = {"rank", "local_rank", "is_main", "writes"}
# Where both branches do it once, one before its work and one after; tests/test_distributed.py.
BALANCED = {"main_first"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is just that, else its last name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".removeprefix(".")
    return node.id if isinstance(node, ast.Name) else ""


def findings(tree: ast.Module) -> Iterator[str]:
    """What is forbidden in a file, each with its line."""
    for node in ast.walk(tree):
        for what in forbidden(node):
            yield f"line {node.lineno}: {what}"  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef) and node.name not in BALANCED:
            for line, what in lonely(node):
                yield f"line {line}: {what} where not all processes come"


def forbidden(node: ast.AST) -> Iterator[str]:
    """What one node of the tree does that it may not."""
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name.partition(".")[0] in MODULES)
    if isinstance(node, ast.ImportFrom):
        name = node.module or ""
        if name.partition(".")[0] in MODULES:
            yield name
        yield from (a.name for a in node.names if f"{name}.{a.name}" in CALLS)
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        yield "bare except"
    if isinstance(node, ast.Call):
        name = dotted(node.func)
        if name in BUILTINS | CALLS or name.rpartition(".")[2] in METHODS:
            yield name
        for keyword in node.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg in FLAGS and not is_off:
                yield keyword.arg


def is_collective(node: ast.AST) -> bool:
    """Whether something is a call that waits for all other processes."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    owner, _, name = dotted(node.func).rpartition(".")
    return name in TOGETHER or (name in OF_WORLD and owner.rpartition(".")[2] == "world")


def tells_apart(node: ast.expr) -> bool:
    """Whether a condition holds in some processes only."""
    names = (
        dotted(part).rpartition(".")[2] for part in ast.walk(node) if isinstance(part, ast.expr)
    )
    return bool(ALONE & set(names))


def lonely(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    """Collectives that only some processes reach: within a condition, or behind an early return."""
    behind = None
    for node in ast.walk(function):
        parts: list[ast.AST] = []
        if isinstance(node, ast.If | ast.While | ast.IfExp) and tells_apart(node.test):
            parts = [node]
            if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Return | ast.Raise):
                behind = min(behind or node.lineno, node.lineno)
        if isinstance(node, ast.BoolOp) and any(map(tells_apart, node.values[:-1])):
            parts = [node]
        for inner in (inner for part in parts for inner in ast.walk(part)):
            if is_collective(inner):
                yield inner.lineno, ast.unparse(inner)  # type: ignore[attr-defined]
    for node in ast.walk(function):
        if behind and is_collective(node) and node.lineno > behind:  # type: ignore[attr-defined]
            yield node.lineno, ast.unparse(node)  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_file_does_nothing_that_is_forbidden(file: Path):
    assert not list(findings(ast.parse(file.read_text())))


FORBIDDEN_LINES = [
    "import pickle",
    "from dill import loads",
    "import yaml",
    "import tarfile",
    "from torch import load",
    "torch.load(path)",
    "torch.save(state, path)",
    "np.load(path)",
    "os.system('ls')",
    "eval(text)",
    "exec(text)",
    "subprocess.run(command, shell=True)",
    "subprocess.run(command, shell=is_windows)",
    "archive.extractall(folder)",
    "st.markdown(text, unsafe_allow_html=True)",
    "st.html(text)",
    "tokenizer(name, trust_remote_code=True)",
    "try:\n    go()\nexcept:\n    pass",
    "def f(self):\n    if self.is_main:\n        dist.barrier()",
    "def f(world):\n    if world.rank == 0:\n        world.sum(x)",
    "def f(run):\n    while run.world.is_main and run.world.any(late): pass",
    "def f(run):\n    x = run.world.sum(y) if run.world.is_main else y",
    "def f(world):\n    return world.is_main and world.any(late)",
    "def f(world):\n    if not world.is_main:\n        return\n    world.sum(x)",
]
ALLOWED_LINES = [
    "model.eval()",
    "model.compile(dynamic=True)",
    "re.compile(text)",
    "subprocess.run(command, shell=False)",
    "st.markdown(text)",
    "# torch.load(path)",
    "text = 'eval(x)'",
    "def f(world):\n    total = world.sum(x)\n    if world.is_main:\n        print(total)",
]


@pytest.mark.parametrize("line", FORBIDDEN_LINES)
def test_every_rule_finds_what_it_forbids(line: str):
    assert list(findings(ast.parse(line)))


@pytest.mark.parametrize("line", ALLOWED_LINES)
def test_what_only_looks_alike_is_no_finding(line: str):
    assert not list(findings(ast.parse(line)))
