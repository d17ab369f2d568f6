"""Real weights: SmolLM2-135M-Instruct through our code and through transformers, in float32.

Random weights can hide an error that training never would: here a wrong token shows. Takes a few
minutes on two cores. Seen to fail when RoPE's base was 10,000 instead of the file's 100,000,
when the last RMSNorm was left out, and when the cache gave each new token the position before it.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from data.chat_format import Message, chat_format_of
from data.tokenizer import Tokenizer
from model.attention import Packed
from model.generate import generate_batch, stream
from model.generation_config import SamplingConfig, stop_ids
from model.sampling import Sampler
from model.weights import load_model

transformers = pytest.importorskip("transformers")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def folder(assets: Path) -> Path:
    return assets / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def ours(folder):
    return load_model(folder, torch.float32)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def conversations(assets: Path) -> list[list[dict[str, str]]]:
    file = pq.ParquetFile(assets / "data" / "train-00000-of-00001.parquet")
    return next(file.iter_batches(400, columns=["conversations"])).to_pydict()["conversations"]


@pytest.fixture(scope="module")
def texts(conversations, tokenizer) -> list[list[int]]:
    """Twenty real texts of 16 to 2,048 tokens."""
    everything = "\n".join(turn["value"] for rows in conversations for turn in rows)
    ids = tokenizer.encode(everything)
    lengths = [16 + 40 * i for i in range(19)] + [2048]
    starts = [sum(lengths[:i]) for i in range(20)]
    assert sum(lengths) <= len(ids)
    return [ids[start : start + n] for start, n in zip(starts, lengths, strict=True)]


def test_logits_argmax_and_perplexity_are_theirs(ours, theirs, texts):
    """Bound 1e-4 of the largest logit; measured on a CPU: 3e-6, by another library for products."""
    their_loss = our_loss = 0.0
    for ids in texts:
        tokens = torch.tensor(ids)
        with torch.no_grad():
            wanted = theirs(tokens[None]).logits[0]
            got = ours(tokens, Packed([len(ids)]))
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        assert torch.equal(got.argmax(-1), wanted.argmax(-1))
        their_loss += F.cross_entropy(wanted[:-1], tokens[1:], reduction="sum").item()
        our_loss += F.cross_entropy(got[:-1], tokens[1:], reduction="sum").item()
    targets = sum(len(ids) - 1 for ids in texts)
    assert f"{math.exp(our_loss / targets):.4g}" == f"{math.exp(their_loss / targets):.4g}"


def test_greedy_answers_are_theirs(ours, theirs, folder, tokenizer, conversations):
    """Twenty questions, 64 tokens each: theirs one by one, ours in one batch and some alone."""
    chat_format = chat_format_of(tokenizer)
    questions = [
        next(turn["value"] for turn in rows if turn["from"] == "human")[:400]
        for rows in conversations[::20]
    ][:20]
    prompts = [
        chat_format.render([Message("user", q)], generation_prompt=True).ids for q in questions
    ]
    wanted = []
    for prompt in prompts:
        out = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=2,
        )[0, len(prompt) :].tolist()
        wanted.append([token for token in out if token not in stop_ids(folder)])
    greedy = SamplingConfig()
    samplers = [Sampler(greedy) for _ in prompts]
    assert generate_batch(ours, prompts, samplers, stop_ids(folder), 64) == wanted
    for prompt, answer in list(zip(prompts, wanted, strict=True))[:4]:
        assert list(stream(ours, prompt, Sampler(greedy), stop_ids(folder), 64)) == answer
