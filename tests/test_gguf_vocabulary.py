"""llama.cpp cuts texts into the ids that our tokenizer does, and what it cannot cut is refused.

Takes a quarter of a minute on two cores. Seen to fail when Llama 3's and SmolLM2's vocabularies had
each other's pre-tokenizer, and SmolLM2's GPT-2's; when all merges but one were left out; when all
scores were equal; when no space was put in front of a text; and when control tokens had the type of
user-defined ones.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_llama
from llama_cpp import LlamaCpp, WeightsOf, export
from texts import BLANKS, ODD, WORDS, expressible, random_text, write_small_llama3_tokenizer

from data.chat_format import Message, chat_format_of
from data.tokenizer import Tokenizer
from model.config import read_json
from publish.gguf_vocabulary import read_vocabulary

FOLDERS = {
    "llama3": ("llama3-tokenizer", "llama-bpe"),
    "smollm2": ("smollm2-135m-instruct", "smollm"),
    "mistral": ("mistral-v1-tokenizer", "default"),
    "mistral, sentencepiece": ("mistral-v1-tokenizer", "default"),
    "stories": ("stories260k", "default"),
    "small": (None, "gpt-2"),
}
FIXED = [
    WORDS,
    *ODD,
    *BLANKS,
    "1 12 123 1234 12345 1234567 3.14159 1,000,000 ½ ² ٣٤ Ⅷ 1st 0x1F",
    "I'm you're we've she'll he'd it's 'S 'T DON'T I'VE ''s ’s 'sun",
    "  two   three    four\t\ttabs \n\n\n  lines \r\n\r\n  end   ",
    "<|eot_id|> <|im_start|>user<|im_end|> <s>x</s> <unk> <|begin_of_text|> <|endoftext|> <0x0A>",
    "naïve café Ünïcödé ÀÉÎ ﬁ ﬂ Ǆ ß ẞ İ ı",
    "snake_case camelCase $x = f(y) != z; // ok\n#include <a.h>\n\tif (a&&b) {}",
    " leading",
    "trailing ",
    "a",
    " ",
    "",
]


@pytest.fixture(scope="module")
def folders(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each of `FOLDERS`, with its tokenizer."""
    made = {}
    for name, (source, _) in FOLDERS.items():
        made[name] = tmp_path_factory.mktemp(name.replace(", ", "-"))
        if source is None:
            write_small_llama3_tokenizer(made[name])
            continue
        file = "tokenizer.model" if "sentencepiece" in name else "tokenizer.json"
        for wanted in (file, "tokenizer_config.json"):
            if (assets / source / wanted).exists():
                shutil.copy(assets / source / wanted, made[name])
    return made


def llama_with(folder: Path, unused: int = 0) -> WeightsOf:
    """A one-layered random Llama with an embedding for this folder's tokenizer."""
    size = Tokenizer.from_folder(folder).vocab_size + unused
    return WeightsOf(tiny_llama(vocab_size=size, hidden_size=32, num_hidden_layers=1))


def texts(count: int, name: str) -> list[str]:
    rng = random.Random(5)
    everything = [*FIXED, *(random_text(rng) for _ in range(count))]
    return [expressible(text, name) for text in everything]


@pytest.mark.parametrize("name", FOLDERS)
def test_llama_cpp_makes_our_ids_out_of_texts(folders, tmp_path, name):
    """Control tokens that stand in a text are text for both."""
    export(llama_with(folders[name], unused=3), folders[name], "f16", tmp_path / "m.gguf")
    llama_cpp, tokenizer = LlamaCpp(tmp_path / "m.gguf"), Tokenizer.from_folder(folders[name])
    for text in texts(300, FOLDERS[name][0] or ""):
        assert llama_cpp.tokenize(text) == tokenizer.encode(text), repr(text)
    assert read_vocabulary(folders[name], 10**6).pre_tokenizer == FOLDERS[name][1]

    if name == "llama3":  # it has the Hub's template, in which llama.cpp puts today's date
        turns = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi, 12345"},
        ]
        text = llama_cpp.chat_prompt(turns, date_string="1 Jan 2025")
        chat_format = chat_format_of(tokenizer, date="1 Jan 2025")
        wanted = chat_format.render([Message(**turn) for turn in turns], True).ids
        assert llama_cpp.tokenize(text, is_chat=True) == wanted


def write_tokenizer(folder: Path, source: Path, **changes: Any) -> Path:
    """A folder with a changed tokenizer.json; `model` is changed field by field."""
    raw = read_json(source / "tokenizer.json")
    raw["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(raw | changes))
    return folder


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "cuts a text by"),
        ({"normalizer": {"type": "NFC"}}, "cuts a text by"),
        ({"model": {"ignore_merges": True}}, "ignore_merges True"),
        ({"model": {"type": "Unigram"}}, "is of the kind Unigram"),
        ({"model": {"byte_fallback": True}}, "prepares a text by"),
    ],
)
def test_what_llama_cpp_would_cut_otherwise_is_refused(folders, tmp_path, changes, reason):
    folder = write_tokenizer(tmp_path, folders["small"], **changes)
    with pytest.raises(ValueError, match=reason) as caught:
        read_vocabulary(folder, 400)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(folders):
    with pytest.raises(ValueError, match="400 tokens and the model's embedding 399 rows"):
        read_vocabulary(folders["small"], 399)


def test_each_kind_of_token_has_its_type(folders, tmp_path):
    added = read_json(folders["small"] / "tokenizer.json")["added_tokens"]
    found_in_text = added[0] | {"id": 402, "content": "<think>", "special": False}
    folder = write_tokenizer(tmp_path, folders["small"], added_tokens=[*added, found_in_text])
    vocabulary = read_vocabulary(folder, 404)
    types = [kind.name for kind in vocabulary.types]
    assert types[:7] == ["CONTROL"] * 7 and set(types[7:400]) == {"NORMAL"}
    assert types[400:] == ["UNUSED", "UNUSED", "USER_DEFINED", "UNUSED"]
    assert vocabulary.tokens[402] == "<think>" and len(set(vocabulary.tokens)) == 404

    stories = read_vocabulary(folders["stories"], 512)
    types = [kind.name for kind in stories.types]
    assert types[:4] == ["UNKNOWN", "CONTROL", "CONTROL", "BYTE"] and types.count("BYTE") == 256
    assert stories.unknown_id == 0


@pytest.mark.parametrize("name", ["stories", "mistral"])
def test_scores_have_the_order_in_which_the_tokenizer_merges(folders, assets, tmp_path, name):
    """SentencePiece's own scores are the oracle, where both files of a vocabulary are there.

    Mistral's tokenizer.json merges runs of spaces last, SentencePiece first; everything else is in
    one order.
    """
    source = assets / FOLDERS[name][0]
    shutil.copy(source / "tokenizer.model", tmp_path)
    theirs = read_vocabulary(tmp_path, 32_000)
    ours = read_vocabulary(folders[name], 32_000)
    assert ours.tokens == theirs.tokens and ours.types == theirs.types
    merged = [i for i, token in enumerate(ours.tokens) if len(token.strip("▁")) > 1]
    merged = [i for i in merged if ours.types[i].name == "NORMAL"]
    assert sorted(merged, key=lambda i: -ours.scores[i]) == sorted(
        merged, key=lambda i: -theirs.scores[i]
    )
