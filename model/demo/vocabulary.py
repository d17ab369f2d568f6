"""The demo's tokenizer: byte-level BPE trained on the demo's own text, built like Llama 3's.

Split pattern, special tokens and their order are Llama 3's (llama_models/llama3/tokenizer.py),
with fewer reserved ones. Only the list of learnt tokens is shorter.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import Sequence as Processors
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAME_PARTS = 760  # tokens, the 256 bytes among them
OFTEN = 12  # times that a word must occur to be a token
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPECIAL_TOKENS = (
    BOS,
    EOS,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 8)),
)


def train_tokenizer(texts: Iterable[str], real: list[str], invented: list[str]) -> Tokenizer:
    """A tokenizer of which every token but some bytes is in use: common words, and parts of names.

    Plain BPE leaves tokens behind that are only steps on the way to longer ones, like "ard" to
    "Leonard". Text never has them until a stranger's name does, and a token that a model has never
    met it cannot say. So here only names are trained on, for their parts. A whole word needs no
    merges: like Llama 3's, this tokenizer first looks whether a word is a token (`ignore_merges`).

    Args:
        texts: what the model will read; the names of special tokens in it are skipped.
        real: users' names, whose parts become tokens. They themselves do not, unless by chance.
        invented: more names for the same purpose, each of them rare in the texts.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(SPLIT), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=NAME_PARTS, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        (f"{blank}{name}" for name in real + invented for blank in " \n"), trainer
    )
    learnt = json.loads(tokenizer.to_str())["model"]
    vocab, merges = learnt["vocab"], [tuple(merge) for merge in learnt["merges"]]
    for word in common_words(texts, tokenizer.pre_tokenizer, set(real)):
        vocab.setdefault(word, len(vocab))
    tokenizer.model = BPE(vocab=vocab, merges=merges, ignore_merges=True)

    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    bos = (BOS, tokenizer.token_to_id(BOS))
    template = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[bos]
    )
    tokenizer.post_processor = Processors([ByteLevelProcessor(trim_offsets=False), template])
    return tokenizer


def common_words(texts: Iterable[str], splitter: Sequence, names: set[str]) -> list[str]:
    """The words and marks that occur often enough to be learnt, except the names."""
    counts: Counter[str] = Counter()
    for text in texts:
        for piece in re.split(r"<\|\w+\|>", text):
            counts.update(word for word, _ in splitter.pre_tokenize_str(piece))
    names = {name.lower() for name in names}
    return [
        word
        for word, count in sorted(counts.items())
        if count >= OFTEN and re.sub(r"\W|\u0120|\u010a", "", word).lower() not in names
    ]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and the tokenizer_config.json that goes with it."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token} | plain | {"special": True}
            for token in SPECIAL_TOKENS
        },
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
