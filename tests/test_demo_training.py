"""The promise of the demo: `python train.py --demo --lr 2e-4` teaches a base model to chat.

Each of three seeds is trained by the command itself, about a minute and a half on two cores, and
then asked what the training conversations never ask, by users whose names occur in no text.

An answer counts as right if every token of it, its end included, is the likeliest one after those
before it: exactly then greedy decoding gives that answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT
from demo_runs import DemoRun

from data.chat_format import ChatFormat, Message, chat_format_of
from data.tokenizer import Tokenizer
from lora.adapter import load_adapter
from lora.inject import lora_disabled
from model.attention import Packed
from model.demo.talks import Talk, Talker, Turn
from model.llama import Llama
from model.weights import load_model

DEMO = ROOT / "model" / "demo"
ASKED = 300  # conversations, or names at each distance


class Trained(NamedTuple):
    """A finished run of the demo."""

    folder: Path
    output: str
    model: Llama


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda seed: f"seed {seed}")
def trained(request: pytest.FixtureRequest, demo_run: Callable[[int], DemoRun]) -> Trained:
    folder, output = demo_run(request.param)
    model = load_model(DEMO, torch.float32)
    load_adapter(model, folder / "adapter")
    return Trained(folder, output, model)


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    return chat_format_of(Tokenizer.from_folder(DEMO))


def messages_of(talk: Talk) -> list[Message]:
    opening = [Message("system", talk.opening)] if talk.opening else []
    turns = [
        Message(role, text)
        for turn in talk.turns
        for role, text in (("user", turn.ask), ("assistant", turn.reply))
    ]
    return opening + turns


def answers(mask: list[bool]) -> Iterator[slice]:
    """Where the assistant's turns stand."""
    place = 0
    for is_answer, run in groupby(mask):
        length = len(list(run))
        if is_answer:
            yield slice(place, place + length)
        place += length


@torch.no_grad()
def marked(model: Llama, chat_format: ChatFormat, talks: list[Talk]) -> list[tuple[Turn, bool]]:
    """Every turn of the talks, and whether the model answers it exactly."""
    result = []
    for first in range(0, len(talks), 16):
        some = talks[first : first + 16]
        rendered = chat_format.render_batch([messages_of(talk) for talk in some])
        tokens = torch.tensor([i for r in rendered for i in r.ids])
        likeliest = model(tokens, Packed([len(r.ids) for r in rendered])).argmax(dim=-1).tolist()
        for talk, r in zip(some, rendered, strict=True):
            own, likeliest = [None, *likeliest[: len(r.ids) - 1]], likeliest[len(r.ids) :]
            places = answers(r.by_assistant)
            for turn, here in zip(talk.turns, places, strict=True):
                result.append((turn, own[here] == r.ids[here]))
    return result


def share(results: list[tuple[Turn, bool]], family: str | None = None) -> float:
    right = [is_right for turn, is_right in results if family in (None, turn.family)]
    return sum(right) / len(right)


def test_held_out_loss_falls_to_a_tenth_within_the_memory(trained: Trained):
    records = [json.loads(line) for line in (trained.folder / "metrics.jsonl").open()]
    losses = [record["eval_loss"] for record in records if "eval_loss" in record]
    seconds = sum(record.get("seconds", 0) for record in records)
    peak = max(record.get("peak_memory_bytes", 0) for record in records)
    print(
        f"held-out loss {losses[0]:.4f} -> {losses[-1]:.4f}, steps {seconds:.0f} s, {peak:,} bytes"
    )
    assert losses[-1] <= 0.1 * losses[0]
    assert peak <= 1.5e9
    in_all = re.search(r"at most ([\d.]+) GB of memory", trained.output)
    assert in_all and float(in_all[1]) <= 1.5


def test_held_out_questions_are_answered_exactly(trained: Trained, chat_format: ChatFormat):
    """At least nine in ten; with the adapter off, fewer than one in twenty."""
    talker = Talker(Random("held-out questions"), held_out=True)
    talks = [Talk("", tuple(talker.questions(3))) for _ in range(ASKED)]
    tuned = marked(trained.model, chat_format, talks)
    with lora_disabled(trained.model):
        untuned = marked(trained.model, chat_format, talks)
    print(f"questions {share(untuned):.1%} -> {share(tuned):.1%}")
    assert share(tuned) >= 0.9
    assert share(untuned) < 0.05


def test_a_name_is_remembered_over_six_turns(trained: Trained, chat_format: ChatFormat):
    """At least 95 % with 0 to 6 questions between telling and asking."""
    talker, results = Talker(Random("names"), held_out=True), []
    for between in range(7):
        talks = []
        for _ in range(ASKED // 3):
            opening = talker.open()
            tell, known, _ = talker.name_turns()
            turns = (tell, *talker.questions(between, without="name"), known)
            talks.append(Talk(opening, turns))
        results.append(marked(trained.model, chat_format, talks))
    by_distance = [share(result, "name") for result in results]
    print("names", " ".join(f"{part:.0%}" for part in by_distance))
    wrong = [
        turn.reply for result in results for turn, ok in result if turn.family == "name" and not ok
    ]
    print("not remembered", *wrong[:20], sep="\n  ")
    assert share([pair for result in results for pair in result], "name") >= 0.95


def test_without_history_it_says_that_it_does_not_know_the_name(
    trained: Trained, chat_format: ChatFormat
):
    """The same questions in a chat of their own."""
    talker = Talker(Random("no history"), held_out=True)
    talks = [Talk("", (talker.name_turns()[2],)) for _ in range(ASKED)]
    assert share(marked(trained.model, chat_format, talks), "no name") >= 0.99


def test_what_it_says_leads_on_to_a_chat(trained: Trained):
    """The summary's last line is a command that works as it stands."""
    command = trained.output.splitlines()[-1].split()
    assert command[:3] == ["python", "chat.py", "ask"]
    done = subprocess.run(
        [
            sys.executable,
            "chat.py",
            "ask",
            "Where does Anna live?",
            *command[4:],
            "--temperature",
            "0",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("Anna lives in "), done.stderr
