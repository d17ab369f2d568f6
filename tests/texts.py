"""Random conversations, and a small Llama 3 tokenizer: what the tests of text share."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = "the cat sat on a mat; it's 1,234.5% (sure), she'll say: WHY? don't @user #1 http://x.y/z"
BLANKS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " \n ",
    "\u0085",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\x1f",
]
ODD = [
    "def f(x):\n    return x  # twice\n",
    "{% if a %}{{ b }}{% endif %}",
    "```python\nprint('a\\n')\n```",
    "<b>bold</b> & <|pipe|> [INST]x[/INST]",
    "你好，世界。",
    "これはテストです",
    "한국어",
    "नमस्ते दुनिया",
    "مرحبا بالعالم",
    "שלום",
    "e\u0301a\u0308o\u0302",
    "👩\u200d👩\u200d👧\u200d👦",
    "🏳️\u200d🌈🇩🇪",
    "a🙂é",
    "\u200b\ufeff\u200e",
    "\x00\x01\x7f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "\ufffd",
    "\U0010ffff\ue000",
]


def random_character(rng: random.Random) -> str:
    """Any code point that UTF-8 can express."""
    code = rng.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)


def random_text(rng: random.Random, blank_ends: bool = True) -> str:
    """A few dozen characters of prose, code, many scripts, blanks and arbitrary characters."""
    parts = []
    for _ in range(rng.randrange(7)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(" ".join(rng.choices(WORDS.split(), k=rng.randrange(1, 6))))
        elif kind < 0.65:
            parts.append(rng.choice(BLANKS))
        elif kind < 0.9:
            parts.append(rng.choice(ODD))
        else:
            parts.append("".join(random_character(rng) for _ in range(rng.randrange(1, 4))))
    text = "".join(parts)
    if not blank_ends:
        return "x" + text + "x"
    return rng.choice(["", *BLANKS]) + text + rng.choice(["", *BLANKS])


def random_conversation(rng: random.Random, blank_ends: bool = True) -> list[dict[str, str]]:
    """A system turn or not, and 1 to 8 turns of user and assistant, as the Hub writes messages."""
    roles = ["system"] * (rng.random() < 0.4) + (["user", "assistant"] * 4)[: rng.randrange(1, 9)]
    return [{"role": role, "content": random_text(rng, blank_ends)} for role in roles]


# The bytes of valid UTF-8 for which SmolLM2's vocabulary has no token, so that its tokenizer drops
# them. F1 and F2 begin characters of the unassigned planes 4 to 11, the others are controls.
MISSING_BYTES = {"smollm2-135m-instruct": b"\x04\x06\x13\x14\x16\x1d\xf1\xf2"}


def expressible(text: str, name: str) -> str:
    """`text` without what the vocabulary called `name` cannot tell apart or has no tokens for."""
    missing = MISSING_BYTES.get(name, b"")
    text = "".join(c for c in text if not set(c.encode()) & set(missing))
    return text.replace("\u2581", "")  # SentencePiece's own sign for a space


LLAMA3_SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
]


def write_small_llama3_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of 400 ids with Llama 3's special tokens, no template; returns `folder`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in LLAMA3_SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([WORDS, *ODD], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder
