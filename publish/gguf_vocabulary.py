"""A model's vocabulary as GGUF has it: what llama.cpp needs to make the same ids out of a text.

llama.cpp knows two kinds that a Llama has. "gpt2" is byte-level BPE (Llama 3, SmolLM2): a text is
cut into words by regular expressions that are part of llama.cpp and are chosen by a name, the
pre-tokenizer's; the file's merges then join the bytes of each word. "llama" is SentencePiece's BPE
(Llama 2, TinyLlama): no words, and of two neighbours that are in the vocabulary together, those
with the highest score are joined first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import TokenType
from sentencepiece import SentencePieceProcessor

from model.config import read_json

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How tokenizer.json says what a name means in llama.cpp: the steps that cut a text into words, and
# whether a word that is in the vocabulary is taken as it is, without merging.
PRE_TOKENIZERS: dict[str, tuple[list[tuple[Any, ...]], bool]] = {
    "llama-bpe": (
        [("Split", {"Regex": LLAMA3_WORDS}, "Isolated", False), ("ByteLevel", False, False)],
        True,
    ),
    "smollm": ([("Digits", True), ("ByteLevel", False, True)], False),
    "gpt-2": ([("ByteLevel", False, True)], False),
}
FIELDS_OF_STEPS = {
    "Split": ("pattern", "behavior", "invert"),
    "Digits": ("individual_digits",),
    "ByteLevel": ("add_prefix_space", "use_regex"),
    "Metaspace": ("replacement", "prepend_scheme", "split"),
    "Prepend": ("prepend",),
    "Replace": ("pattern", "content"),
}
# How tokenizer.json says that spaces become "▁", and whether one is put in front of the text.
PUTS_SPACE: list[tuple[list[tuple[Any, ...]], bool]] = [
    ([("Prepend", "▁"), ("Replace", {"String": " "}, "▁")], True),
    ([("Metaspace", "▁", "always", False)], True),
    ([("Metaspace", "▁", "first", False)], True),
    ([("Metaspace", "▁", "never", False)], False),
]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens by id, and how a text is cut into them.

    Attributes:
        kind: "gpt2" or "llama".
        pre_tokenizer: llama.cpp's name of the rule that cuts a text into words.
        tokens: in a "gpt2" vocabulary a character a byte (see `data/vocabulary.py`), in a "llama"
            vocabulary text with "▁" for a space; control tokens by their names.
        types: of every token.
        merges: "gpt2": pairs of tokens with a space between them, the first to be merged first.
        scores: "llama": of every token.
        puts_space: "llama": whether a space is put in front of a text.
        unknown_id: "llama": what stands for a character that is not in the vocabulary.
    """

    kind: str
    pre_tokenizer: str
    tokens: list[str]
    types: list[TokenType]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    puts_space: bool = False
    unknown_id: int | None = None


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary of a model folder, from the file that `data/tokenizer.py` reads.

    Args:
        folder: the model's.
        vocab_size: rows of the model's embedding. Where the tokenizer has fewer tokens, the others
            are marked as unused.

    Raises:
        ValueError: if llama.cpp has nothing that makes the same ids.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            vocabulary = from_tokenizer_json(read_json(path))
        else:
            path = folder / "tokenizer.model"
            vocabulary = from_sentencepiece(SentencePieceProcessor(model_file=str(path)))
        return padded(vocabulary, vocab_size)
    except (ValueError, OSError, RuntimeError, KeyError, TypeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {what}") from None


def from_tokenizer_json(raw: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a tokenizer.json's content."""
    bpe = raw["model"]
    if bpe.get("type", "BPE") != "BPE":
        raise ValueError(f"is of the kind {bpe['type']}; llama.cpp runs a Llama with BPE only")
    tokens, types = tokens_and_types(bpe["vocab"], raw["added_tokens"])
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in bpe["merges"]]
    if not bpe.get("byte_fallback"):
        name = name_of_pre_tokenizer(raw, bpe.get("ignore_merges", False))
        return Vocabulary("gpt2", name, tokens, types, [" ".join(merge) for merge in merges])

    for token_id, token in enumerate(tokens):
        if BYTE_TOKEN.fullmatch(token):
            types[token_id] = TokenType.BYTE
    unknown = bpe["vocab"].get(bpe.get("unk_token"))
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=scores_of_merges(tokens, merges),
        puts_space=puts_space(raw),
        unknown_id=unknown,
    )


def tokens_and_types(
    vocab: dict[str, int], added: Sequence[dict[str, Any]]
) -> tuple[list[str], list[TokenType]]:
    """Every token by its id; ids that a file leaves out are unused."""
    text_by_id = {token_id: token for token, token_id in vocab.items()}
    type_by_id = dict.fromkeys(text_by_id, TokenType.NORMAL)
    for token in added:
        text_by_id[token["id"]] = token["content"]
        # llama.cpp finds user-defined tokens in any text, control tokens only where it is asked to.
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        type_by_id[token["id"]] = kind
    ids = range(max(text_by_id) + 1)
    tokens = [text_by_id.get(i, unused(i)) for i in ids]
    return tokens, [type_by_id.get(i, TokenType.UNUSED) for i in ids]


def unused(token_id: int) -> str:
    """What an id is called that has no token."""
    return f"[PAD{token_id}]"


def name_of_pre_tokenizer(raw: dict[str, Any], ignores_merges: bool) -> str:
    """llama.cpp's name for what a byte-level tokenizer.json does before it merges.

    Raises:
        ValueError: if it has none: under another's name the model would be run on other ids than
            it was trained on, and answer worse for no visible reason.
    """
    found = steps(raw.get("normalizer")) + steps(raw.get("pre_tokenizer"))
    for name, known in PRE_TOKENIZERS.items():
        if (found, ignores_merges) == known:
            return name
    raise ValueError(
        f"cuts a text by {str(found)[:200]} (ignore_merges {ignores_merges}), which llama.cpp is "
        f"not known to do; only {', '.join(PRE_TOKENIZERS)} can be exported"
    )


def steps(component: dict[str, Any] | None) -> list[tuple[Any, ...]]:
    """A tokenizer.json's normalizer or pre-tokenizer, a tuple for each of its steps."""
    if component is None:
        return []
    inner = component.get("normalizers") or component.get("pretokenizers")
    if inner is not None:
        return [step for part in inner for step in steps(part)]
    kind = component["type"]
    return [(kind, *(component.get(name) for name in FIELDS_OF_STEPS.get(kind, ())))]


def puts_space(raw: dict[str, Any]) -> bool:
    """Whether a SentencePiece vocabulary's tokenizer.json puts a space in front of a text.

    Raises:
        ValueError: if it does anything else with the text, which llama.cpp would not do.
    """
    found = steps(raw.get("normalizer")) + steps(raw.get("pre_tokenizer"))
    for known, answer in PUTS_SPACE:
        if found == known:
            return answer
    raise ValueError(
        f"prepares a text by {str(found)[:200]}; llama.cpp puts a space in front of it, or does "
        "not, and changes nothing else"
    )


def scores_of_merges(tokens: Sequence[str], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """SentencePiece's scores, from the order in which a tokenizer.json merges.

    SentencePiece scores the pieces 0, -1, -2, ... as it learns them, and the merges of the JSON
    file are sorted by what they make: the first of them that makes a piece tells its place.
    """
    place: dict[str, int] = {}
    for merge in merges:
        place.setdefault("".join(merge), len(place))
    return [float(-place.get(token, len(place))) for token in tokens]


def from_sentencepiece(model: SentencePieceProcessor) -> Vocabulary:
    """The vocabulary in a SentencePiece tokenizer.model."""
    ids = range(model.vocab_size())
    scores = [model.get_score(i) for i in ids]
    if any(score > 0 or score != int(score) for score in scores):
        raise ValueError("has probabilities for scores, so it is no BPE; llama.cpp needs BPE")
    if model.normalize("ﬁ  x").removeprefix("▁") != "ﬁ▁▁x":
        raise ValueError("changes the text before it is cut, which llama.cpp does not do")

    def type_of(token_id: int) -> TokenType:
        kinds = {
            TokenType.UNKNOWN: model.is_unknown,
            TokenType.CONTROL: model.is_control,
            TokenType.UNUSED: model.is_unused,
            TokenType.BYTE: model.is_byte,
        }
        return next((kind for kind, holds in kinds.items() if holds(token_id)), TokenType.NORMAL)

    tokens, types = [model.id_to_piece(i) for i in ids], [type_of(i) for i in ids]
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=scores,
        puts_space=model.encode("a", out_type=str)[0].startswith("▁"),
        unknown_id=model.unk_id(),
    )


def padded(vocabulary: Vocabulary, vocab_size: int) -> Vocabulary:
    """The vocabulary with a token for each of the model's ids."""
    count = len(vocabulary.tokens)
    if count > vocab_size:
        raise ValueError(
            f"has {count:,} tokens and the model's embedding {vocab_size:,} rows; "
            "tokenizer and weights do not belong together"
        )
    vocabulary.tokens.extend(unused(i) for i in range(count, vocab_size))
    vocabulary.types.extend([TokenType.UNUSED] * (vocab_size - count))
    if vocabulary.scores:
        vocabulary.scores.extend([min(vocabulary.scores)] * (vocab_size - count))
    return vocabulary
