"""Every shape comment in model/ and lora/ is executed, so none of them can go stale.

A line such as

    q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (T, H, E)

claims a shape. While a tiny model trains a step and answers, each frame of these files is traced;
when a claiming line has run, the variable is looked up and compared. D F V H K E R are the
configuration's sizes; B T S take the size that they first have in a frame and keep it there.

Seen to fail when a comment named a dimension too few, when two dimensions were swapped, and when a
claiming line was not reached.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from conftest import random_tokens, tiny_llama

from lora.inject import LoRAConfig, add_lora, lora_layers
from model.answering import arrange_for_answers
from model.attention import Packed
from model.columns import HAS_FBGEMM
from model.generate import generate_batch, stream
from model.sampling import Sampler, SamplingConfig

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("model/*.py"), *ROOT.glob("lora/*.py")])
if not HAS_FBGEMM:  # no model is arranged for answers there
    FILES.remove(ROOT / "model" / "answering.py")
SIZES = {"D": 48, "F": 88, "V": 211, "H": 6, "K": 2, "E": 10, "R": 5}
SHAPE = re.compile(r"#\s*\(([^()]+)\)")


@dataclass(frozen=True)
class Claim:
    """An assignment and the shape that its comment gives the variable."""

    file: str
    lines: range
    variable: str
    dimensions: tuple[str, ...]


def claims_of(path: Path) -> list[Claim]:
    source = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    shapes = {
        token.start[0]: match[1]
        for token in tokens
        if token.type == tokenize.COMMENT and (match := SHAPE.match(token.string))
    }
    claims = []
    unclaimed = set(shapes)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and node.end_lineno in shapes:
            target = node.targets[0]
            assert isinstance(target, ast.Name), f"{path}:{node.lineno}: cannot check this"
            dimensions = tuple(d.strip() for d in shapes[node.end_lineno].split(",") if d.strip())
            lines = range(node.lineno, node.end_lineno + 1)
            claims.append(Claim(str(path), lines, target.id, dimensions))
            unclaimed.discard(node.end_lineno)
    assert not unclaimed, f"{path}: shape comments that no assignment ends with: {unclaimed}"
    return claims


def size(dimension: str, letters: dict[str, int]) -> int:
    """The number that a dimension like T, 1, E/2 or H // K stands for."""
    node = ast.parse(dimension, mode="eval").body
    if isinstance(node, ast.BinOp):
        left, right = (size(ast.unparse(side), letters) for side in (node.left, node.right))
        return left * right if isinstance(node.op, ast.Mult) else left // right
    return letters[node.id] if isinstance(node, ast.Name) else int(ast.unparse(node))


class ShapeTracer:
    """Checks claims while code runs; to be given to `sys.settrace`."""

    def __init__(self, claims: list[Claim]) -> None:
        self.by_line = {(c.file, line): c for c in claims for line in c.lines}
        self.files = {c.file for c in claims}
        self.checked: set[Claim] = set()
        self.errors: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> Callable | None:
        if frame.f_code.co_filename not in self.files:
            return None
        letters = dict(SIZES)
        previous = frame.f_lineno

        def trace_line(frame: FrameType, event: str, _: object) -> Callable:
            nonlocal previous
            claim = self.by_line.get((frame.f_code.co_filename, previous))
            has_left = event == "return" or frame.f_lineno not in (claim.lines if claim else ())
            if claim and has_left and event in ("line", "return"):
                self.check(claim, frame.f_locals.get(claim.variable), letters)
            previous = frame.f_lineno
            return trace_line

        return trace_line

    def check(self, claim: Claim, value: object, letters: dict[str, int]) -> None:
        if not isinstance(value, torch.Tensor):
            return
        for letter, actual in zip(claim.dimensions, value.shape, strict=False):
            if letter in ("B", "T", "S"):
                letters.setdefault(letter, actual)
        claimed = tuple(size(d, letters) for d in claim.dimensions)
        self.checked.add(claim)
        if claimed != tuple(value.shape):
            place = f"{Path(claim.file).name}:{claim.lines[0]}"
            self.errors.append(
                f"{place}: {claim.variable} is {tuple(value.shape)}, "
                f"the comment says ({', '.join(claim.dimensions)}) = {claimed}"
            )


def train_a_step_and_answer() -> None:
    model = tiny_llama()
    add_lora(model, LoRAConfig(rank=SIZES["R"]))
    model.train()
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[0, 5:] = mask[2, :1] = False
    model.forward_padded(random_tokens(24).reshape(3, 8), mask).sum().backward()
    model.eval()
    model(random_tokens(7), Packed([3, 4]))
    settings = SamplingConfig(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02)
    samplers = [Sampler(settings, seed) for seed in range(3)]
    generate_batch(model, [[1, 2, 3], [4], [5, 6]], samplers, frozenset(), 4)
    list(stream(model, [1, 2, 3], Sampler(settings), frozenset(), 3))
    for layer in lora_layers(model).values():
        layer.merged()
    answering = arrange_for_answers(tiny_llama().bfloat16().requires_grad_(False))
    list(stream(answering, [1, 2, 3], Sampler(settings), frozenset(), 3))


def test_every_shape_comment_is_true_and_reached():
    claims = [claim for path in FILES for claim in claims_of(path)]
    tracer = ShapeTracer(claims)
    # The speeds of RoPE are remembered; a fresh start makes the lines run that compute them.
    from model.rope import rotation_speeds

    rotation_speeds.cache_clear()
    sys.settrace(tracer)
    try:
        train_a_step_and_answer()
    finally:
        sys.settrace(None)
    unreached = [f"{Path(c.file).name}:{c.lines[0]}" for c in claims if c not in tracer.checked]
    assert not tracer.errors, "\n".join(tracer.errors)
    assert not unreached, f"never executed: {unreached}"
    assert len(claims) > 25
