"""SmolLM2-135M-Instruct with an adapter, exported and run by llama.cpp itself.

Takes half a minute on two cores. Seen to fail when the adapter was left out; the finer faults are
in test_gguf_llamas.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llama_cpp import LlamaCpp, WeightsOf, export, rounded
from safetensors.torch import save_file

from data.chat_format import ChatFormat, Message, chat_format_of
from data.snapshot import Snapshot
from data.tokenizer import Tokenizer
from lora.adapter import WEIGHTS_FILE, load_adapter, tensor_shapes
from lora.config import CONFIG_FILE, BaseModel, LoRAConfig, peft_config
from lora.inject import merge_lora
from model.attention import Packed
from model.config import LlamaConfig
from model.llama import Llama
from model.weights import load_model
from publish.merge import MergedWeights
from publish.source import Source

pq = pytest.importorskip("pyarrow.parquet")
LORA = LoRAConfig(8, 8.0, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
NEW_TOKENS = 16
# Those 20 of 40 whose answers are the most decided. In the other 20 the two likeliest tokens come
# as near to each other as 0.0015 to 0.08 nats, and llama.cpp is up to 0.01 away from us: it rounds
# what goes into a product with an F16 matrix to F16, too.
QUESTIONS = """What is the capital of France?
What is the boiling point of water?
Suggest a name for a cat.
Who was the first person on the moon?
What does DNA stand for?
What is gravity?
What is the opposite of hot?
Write a Python function that adds two numbers.
What is the tallest mountain?
Why do leaves fall in autumn?
Give me three tips for sleeping well.
Write one sentence about dogs.
What is a prime number?
Give me a recipe for pancakes.
Who painted the Mona Lisa?
How do plants drink water?
Tell me a short story about a fox.
What is machine learning?
How far is the moon?
Explain photosynthesis to a child.""".splitlines()


def random_adapter(model: Path, folder: Path) -> Source:
    """An adapter that changes every layer a little, and most of what the model says."""
    with torch.device("meta"):
        shapes = tensor_shapes(Llama(LlamaConfig.from_folder(model)), LORA)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        std = 0.03 if "lora_B" in name else shape[1] ** -0.5
        tensors[name] = torch.randn(shape, generator=generator) * std
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(peft_config(LORA, BaseModel())))
    return Source(folder, LORA, BaseModel(), Snapshot(model, str(model), None), None)


@pytest.fixture(scope="module")
def folder(assets: Path) -> Path:
    return assets / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def source(folder, tmp_path_factory) -> Source:
    return random_adapter(folder, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def weights(source) -> MergedWeights:
    return MergedWeights(source)


@pytest.fixture(scope="module")
def exact(folder, source) -> WeightsOf:
    """The same by other means: base and adapter as they are loaded to chat with."""
    model = load_model(folder, torch.float32)
    load_adapter(model, source.adapter)
    merge_lora(model)
    return WeightsOf(model)


@pytest.fixture(scope="module")
def chat_format(folder) -> ChatFormat:
    return chat_format_of(Tokenizer.from_folder(folder))


@pytest.fixture(scope="module")
def f16(weights, folder, tmp_path_factory) -> LlamaCpp:
    file = tmp_path_factory.mktemp("f16") / "smollm.gguf"
    assert export(weights, folder, "f16", file) == ()
    return LlamaCpp(file)


@torch.no_grad()
def log_probabilities(model: Llama, texts: list[list[int]]) -> list[torch.Tensor]:
    """Of every token at every place of each text, (T, V) each."""
    lengths = [len(ids) for ids in texts]
    tokens = torch.tensor([i for ids in texts for i in ids])
    return list(model(tokens, Packed(lengths)).log_softmax(-1).split(lengths))


def test_greedy_answers_are_ours_token_by_token(f16, exact, chat_format):
    """Ours is computed in float32, of the very numbers that are in the file.

    If each token of an answer is our first choice behind those before it, our greedy answer is the
    same. That every choice is a clear one is asserted, too. Measured: log-probabilities differ by
    up to 0.01 nats.
    """
    prompts = [chat_format.render([Message("user", q)], True).ids for q in QUESTIONS]
    answers = [f16.complete(prompt, NEW_TOKENS) for prompt in prompts]
    found = [[token["id"] for token in tokens] for *tokens, _ in answers]
    texts = [prompt + ids for prompt, ids in zip(prompts, found, strict=True)]
    ours = rounded(exact, torch.float16)
    for i, rows in enumerate(log_probabilities(ours, texts)):
        *tokens, end = answers[i]
        best, choice = rows[len(prompts[i]) - 1 : -1].topk(2)
        assert (best[:, 0] - best[:, 1]).min() > 0.05, f"not decided: {QUESTIONS[i]}"
        assert found[i] == choice[:, 0].tolist()
        difference = torch.tensor([token["logprob"] for token in tokens]) - best[:, 0]
        assert difference.abs().max() < 0.03

        is_over = [token in chat_format.end_ids for token in found[i]]
        assert not any(is_over[:-1])
        assert end["reason"] == ("eos" if is_over[-1] else "limit")
        assert is_over[-1] or len(found[i]) == NEW_TOKENS
    assert sum(end["reason"] == "eos" for *_, end in answers) >= 4


def test_the_chat_prompt_is_ours_and_the_answer_stops_at_the_end_of_a_turn(f16, chat_format):
    turns = [("user", "Hi there!"), ("assistant", "Hello."), ("user", "What is 1 + 1?")]
    for system in ([], [("system", "Be brief.")]):
        conversation = [*system, *turns]
        text = f16.chat_prompt([{"role": role, "content": said} for role, said in conversation])
        messages = [Message(role, said) for role, said in conversation]
        assert f16.tokenize(text, is_chat=True) == chat_format.render(messages, True).ids

    question = [{"role": "user", "content": "What is the capital of France?"}]
    request = {"messages": question, "temperature": 0, "max_tokens": 100}
    choice = f16.server.handle_chat_completions(request)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "The capital of France is Paris."


def test_perplexity_in_q8_0_is_ours_within_one_percent(weights, exact, folder, assets, tmp_path):
    """Ours is of the merged weights in float32, on 192 tokens of real conversations.

    Measured: 0.7 %, of 600 tokens as well. The rounded weights alone make 0.3 %; llama.cpp rounds
    what is multiplied with them to 8 bits, too.
    """
    file = tmp_path / "smollm.gguf"
    export(weights, folder, "q8_0", file)
    table = pq.read_table(assets / "data" / "train-00000-of-00001.parquet").slice(0, 40)
    turns = [t["value"] for row in table["conversations"].to_pylist() for t in row]
    ids = Tokenizer.from_folder(folder).encode("\n".join(turns))[:193]

    targets = torch.tensor(ids[1:])
    (rows,) = log_probabilities(rounded(exact, torch.float32), [ids])
    wanted = rows[:-1].gather(1, targets[:, None])[:, 0]
    found = LlamaCpp(file).log_probabilities(ids)
    assert len(found) == len(wanted) == 192
    ratio = (wanted.mean() - found.mean()).exp().item()
    assert abs(ratio - 1) < 0.01
    assert not torch.allclose(found, wanted, atol=1e-4)  # it was rounded
