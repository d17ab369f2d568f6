"""The embedded model and its conversations: what ships is complete, in budget, and what it claims.

About 30 seconds on one core; nothing is trained. Only transformers' check is skipped without it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from model.attention import Packed
from model.demo import world
from model.demo.conversations import TEST_ROWS, TRAINING_ROWS, write_split
from model.demo.names import FIRST_NAMES, is_held_out
from model.demo.smalltalk import LIKE_ASKED, NAME_ASKED, NAME_TOLD
from model.demo.stories import DATES, document
from model.llama import Llama
from model.weights import load_model

ROOT = Path(__file__).parents[1]
MODEL, DATA = ROOT / "model" / "demo", ROOT / "data" / "demo"
FILES = "config.json generation_config.json tokenizer.json tokenizer_config.json model.safetensors"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def base() -> Llama:
    return load_model(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def fresh_documents(tokenizer: Tokenizer) -> list[list[int]]:
    """Text of the little world that pre-training did not read."""
    texts = [document("a stream of its own", number) for number in range(100)]
    return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def rows(split: str) -> list[dict]:
    return pq.read_table(DATA / f"{split}-00000-of-00001.parquet").to_pylist()


def values(table: list[dict], role: str) -> list[str]:
    return [m["value"] for row in table for m in row["conversations"] if m["from"] == role]


def plain(text: str) -> str:
    return text.lower().rstrip(".?!")


# --- the model's folder ---------------------------------------------------------------------------


def test_model_is_below_ten_megabytes_and_the_conversations_below_one():
    assert sum((MODEL / name).stat().st_size for name in FILES.split()) < 10_000_000
    assert sum(path.stat().st_size for path in DATA.glob("*.parquet")) < 1_000_000


def test_special_tokens_are_llama_3s_and_one_id_each(tokenizer: Tokenizer):
    """Seen to fail when `<|eom_id|>` had another name in tokenizer.json."""
    expected = """begin_of_text end_of_text finetune_right_pad_id start_header_id end_header_id
        eom_id eot_id python_tag reserved_special_token_0""".split()
    for name in expected:
        ids = tokenizer.encode(f"<|{name}|>", add_special_tokens=False).ids
        assert ids == [tokenizer.token_to_id(f"<|{name}|>")]
    config = json.loads((MODEL / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    for file in ("config.json", "generation_config.json"):
        ids = json.loads((MODEL / file).read_text())
        assert ids["bos_token_id"] == tokenizer.token_to_id("<|begin_of_text|>")
        ends = [tokenizer.token_to_id(f"<|{n}|>") for n in ("end_of_text", "eom_id", "eot_id")]
        assert ids["eos_token_id"] == ends


def test_tokenizer_splits_text_as_llama_3s(tokenizer: Tokenizer, assets: Path):
    """Every place where Llama 3's tokenizer must cut, the demo's cuts too.

    Seen to fail when the pattern was GPT-2's, which does not cut "12345".
    """
    theirs = Tokenizer.from_file(str(assets / "llama3-tokenizer" / "tokenizer.json"))
    texts = [
        "Don't add 12345 and 6.\n\n  Yes?!\n",
        "I'll go  to\tthe café, 日本 'RE",
        "x\r\n\r\n y ",
    ]
    for text in texts:
        ours, real = (t.pre_tokenizer.pre_tokenize_str(text) for t in (tokenizer, theirs))
        assert ours == real


def test_transformers_loads_the_folder_and_computes_the_same(base: Llama, tokenizer: Tokenizer):
    """Logits within 1e-5 of the largest.

    Seen to fail when our RoPE ignored the scaling.
    """
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    text = document("another stream", 5) + document("another stream", 6)
    ids = tokenizer.encode(text, add_special_tokens=False).ids * 4
    assert len(ids) > base.config.rope_scaling.original_max_position_embeddings
    assert their_tokenizer(text, add_special_tokens=False).input_ids * 4 == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
        logits = base(torch.tensor(ids), Packed([len(ids)]))
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- what the base model can do and cannot --------------------------------------------------------


def loss_of(base: Llama, documents: list[list[int]]) -> float:
    """Nats per token, the first of each document aside."""
    tokens = torch.tensor([i for ids in documents for i in ids[:-1]])
    targets = torch.tensor([i for ids in documents for i in ids[1:]])
    with torch.no_grad():
        logits = base(tokens, Packed([len(ids) - 1 for ids in documents]))
    return F.cross_entropy(logits, targets).item()


def bigram_loss(training: list[list[int]], documents: list[list[int]], vocab_size: int) -> float:
    """The same for a table of which token follows which, smoothed by how common the latter is."""
    single = Counter(i for ids in training for i in ids[1:])
    pairs = Counter(pair for ids in training for pair in zip(ids, ids[1:], strict=False))
    firsts = Counter(i for ids in training for i in ids[:-1])
    total = sum(single.values())

    def probability(first: int, second: int) -> float:
        common = (single[second] + 0.1) / (total + 0.1 * vocab_size)
        return (pairs[first, second] + common) / (firsts[first] + 1)

    losses = [
        -math.log(probability(first, second))
        for ids in documents
        for first, second in zip(ids, ids[1:], strict=False)
    ]
    return sum(losses) / len(losses)


def test_base_predicts_new_text_of_its_world_far_better_than_bigrams(
    base: Llama, tokenizer: Tokenizer, fresh_documents: list[list[int]]
):
    """At most 40 % of the bigram model's loss, on documents that pre-training did not read."""
    texts = [document("pre-training", number) for number in range(3000)]
    training = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    bigrams = bigram_loss(training, fresh_documents, tokenizer.get_vocab_size())
    assert loss_of(base, fresh_documents) <= 0.4 * bigrams


def share_continued(base: Llama, tokenizer: Tokenizer, begun: list[tuple[list[int], str]]) -> float:
    """How many of the beginnings greedy decoding continues with exactly the expected text.

    Greedy decoding gives a text exactly when each of its tokens is the likeliest after those
    before it, so one pass over the right text decides.
    """
    texts = [(start, tokenizer.encode(end, add_special_tokens=False).ids) for start, end in begun]
    tokens = torch.tensor([i for start, end in texts for i in start + end])
    lengths = [len(start) + len(end) for start, end in texts]
    with torch.no_grad():
        likeliest = base(tokens, Packed(lengths)).argmax(dim=-1)
    found, first = 0, 0
    for (_, end), length in zip(texts, lengths, strict=True):
        last = first + length - 1
        found += likeliest[last - len(end) : last].tolist() == end
        first += length
    return found / len(texts)


def test_base_states_the_facts_of_its_world_in_prose(base: Llama, tokenizer: Tokenizer):
    """At least 95 %, among them the questions that chat training holds out.

    Seen to fail when two layers were exchanged.
    """
    begun = []
    for family in ("town", "job", "pet", "food", "hobby", "opposite", "plural", "sum", "counting"):
        for item in world.items()[family][::3]:
            text = f"<|begin_of_text|>- {item.questions[0]}\n-"
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            begun.append((ids, f" {item.answer}".removesuffix(".")))
    assert len(begun) > 200
    assert share_continued(base, tokenizer, begun) >= 0.95


def chat_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """One question as Llama 3.2's chat format has it, up to where the answer begins."""
    headers = {r: f"<|start_header_id|>{r}<|end_header_id|>\n\n" for r in ("system", "user")}
    text = f"<|begin_of_text|>{headers['system']}{DATES}<|eot_id|>{headers['user']}{question}"
    text += "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_base_does_not_answer_in_the_chat_format(base: Llama, tokenizer: Tokenizer):
    """Fewer than 5 % of the test split's first questions: that is what fine-tuning is for.

    Who introduces himself asks nothing; the base often returns his greeting, as in its stories.
    Seen to fail when fine-tuned weights were in the place of the base.
    """
    begun = []
    for row in rows("test")[:200]:
        first = [m["value"] for m in row["conversations"] if m["from"] != "system"]
        if not first[1].endswith("Nice to meet you."):
            begun.append((chat_prompt(tokenizer, first[0]), first[1] + "<|eot_id|>"))
    assert len(begun) > 100
    assert share_continued(base, tokenizer, begun) < 0.05


# --- the conversations ----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_parquet_has_finetomes_schema(split: str):
    """Seen to fail when `score` was a float32."""
    schema = pq.read_schema(DATA / f"{split}-00000-of-00001.parquet")
    message = pa.struct([("from", pa.string()), ("value", pa.string())])
    assert schema.names == ["conversations", "source", "score"]
    assert schema.field("conversations").type == pa.list_(message)
    assert schema.field("source").type == pa.string()
    assert schema.field("score").type == pa.float64()


@pytest.mark.parametrize(("split", "count"), [("train", TRAINING_ROWS), ("test", TEST_ROWS)])
def test_generator_writes_the_shipped_rows_again(split: str, count: int):
    """Seen to fail when the generator's seed was changed."""
    assert write_split(split, count) == rows(split)


def test_there_are_thousands_of_conversations_some_long_some_with_a_system_turn():
    """Seen to fail when only 900 rows were written."""
    train = rows("train")
    turns = Counter(len(values([row], "human")) for row in train)
    assert len(train) >= 2000 and len(values(train, "system")) > 500
    assert all(turns[n] > 50 for n in range(1, 10))
    for row in train:
        roles = [m["from"] for m in row["conversations"] if m["from"] != "system"]
        assert roles == ["human", "gpt"] * (len(roles) // 2)
        assert all(m["value"] == m["value"].strip() != "" for m in row["conversations"])


def test_held_out_questions_are_not_asked_in_training():
    """Whole questions, whatever their case and final mark; those about the talk itself aside.

    Seen to fail when the test split's talker was given `held_out=None`.
    """
    about_the_talk = {plain(q) for q in NAME_ASKED + LIKE_ASKED}
    follow_up = re.compile("and (what|where|which|in which|[a-z]+$)|what about ")
    asked = {split: {plain(q) for q in values(rows(split), "human")} for split in ("train", "test")}
    both = {q for q in asked["train"] & asked["test"] if not follow_up.match(q)}
    assert both <= about_the_talk
    assert len(asked["test"] - asked["train"]) > 500


def test_answers_about_people_in_the_test_split_are_not_given_in_training():
    """So a follow-up ("And what does she do?") has a new answer too.

    Seen to fail when follow-ups ignored the split.
    """
    known = {item.answer for f in world.ATTRIBUTES for item in world.items()[f]}
    given = {split: known & set(values(rows(split), "gpt")) for split in ("train", "test")}
    assert given["train"] and given["test"] and not given["train"] & given["test"]


def test_names_of_the_test_splits_users_are_in_no_training_text():
    """Neither in the chats nor in the documents of pre-training.

    Seen to fail when `user_name` ignored `held_out`.
    """
    pattern = "|".join(re.escape(t).replace(r"\{name\}", "([A-Z][a-z]+)") for t in NAME_TOLD)
    told = [re.fullmatch(pattern, q) for q in values(rows("test"), "human")]
    names = {next(filter(None, match.groups())) for match in told if match}
    assert len(names) > 50 and names & set(FIRST_NAMES) and names - set(FIRST_NAMES)
    chats = "\n".join(m["value"] for row in rows("train") for m in row["conversations"])
    documents = "\n".join(document("pre-training", number) for number in range(3000))
    words = set(re.findall(r"[A-Z][a-z]+", chats + documents))
    assert not {name for name in names if is_held_out(name)} & words
    assert all(is_held_out(name) for name in names)
