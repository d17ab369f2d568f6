"""Text to token ids and back, with the control tokens kept apart from the text.

A vocabulary has two kinds of tokens. Content tokens spell text; `encode` makes nothing else.
Control tokens such as `<|eot_id|>` or `<s>` say who speaks and where a turn ends; only code puts
them in, by `control_ids`, and no text is ever parsed for them. A user who types "<|eot_id|>", or a
data set that holds it, gets the handful of content tokens that spell those characters.

Decoding goes through bytes, since a token may end in the middle of a character: every id stands
for some bytes, and text is what their concatenation means in UTF-8. A stream of ids is therefore
decoded like any stream of bytes, and never shows half a character.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.vocabulary import TokenizerJson, TokenizerModel

# Put in front of a text that goes on where another ended, so that SentencePiece's leading space
# comes before this; both are then cut off. No vocabulary merges a NUL with what follows it.
MARKER = "\0"


class Tokenizer:
    """A model's vocabulary: text to content ids, ids to text, and the control tokens by name.

    Attributes:
        control_ids: every special or added token, by its text.
        vocab_size: number of ids.
        bos_id: the id of the token that begins a text, or None.
        adds_bos: whether the model expects `bos_id` in front of every text.
        spaces_segments: whether the space that a SentencePiece vocabulary puts in front of a text
            also stands after each control token (Llama 2), or only at the very start.
        chat_template: the Hub's template, as text. It is looked at to tell the format, never run.
    """

    def __init__(
        self,
        vocabulary: TokenizerJson | TokenizerModel,
        config: dict[str, Any],
        chat_template: str | None,
    ) -> None:
        self.vocabulary = vocabulary
        self.control_ids = vocabulary.control_ids
        self.vocab_size = vocabulary.vocab_size
        self.spaces_segments = vocabulary.spaces_segments
        self.chat_template = chat_template
        self.bytes_by_id: dict[int, bytes] = {}

        name = config.get("bos_token")
        self.bos_id = self.control_ids[name] if name in self.control_ids else vocabulary.bos_id
        adds_bos = config.get("add_bos_token")
        if adds_bos is None:
            adds_bos = vocabulary.bos_id is not None
        self.adds_bos = adds_bos and self.bos_id is not None

        self.leading_space = self.bytes_of(self.encode("a")[0]).startswith(b" ")
        self.marker_length = len(self.encode(MARKER))

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model folder: tokenizer.json, or else a SentencePiece tokenizer.model.

        Raises:
            ValueError: if the folder has neither file, or if one of its files cannot be read.
        """
        folder = Path(folder)
        vocabulary: TokenizerJson | TokenizerModel
        if (folder / "tokenizer.json").is_file():
            vocabulary = TokenizerJson(folder / "tokenizer.json")
        elif (folder / "tokenizer.model").is_file():
            vocabulary = TokenizerModel(folder / "tokenizer.model")
        else:
            raise ValueError(
                f"{folder} has neither tokenizer.json nor tokenizer.model; download one of them"
            )
        config = read_config(folder / "tokenizer_config.json")
        return cls(vocabulary, config, read_chat_template(folder, config))

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """The content ids of `text`: no BOS, no EOS, no control token, whatever the text says.

        A character that the vocabulary cannot spell is left out, as by the Hub's tokenizers: those
        of Llama spell all, SmolLM2's lacks a few controls and the unassigned planes 4 to 11.

        Args:
            text: any string.
            continues: the text goes on where other text ended, so no space is put in front of it.

        Raises:
            ValueError: if the text holds a lone surrogate, which no encoding can express.
        """
        return self.encode_batch([text], [continues])[0]

    def encode_batch(
        self, texts: Iterable[str], continues: Sequence[bool] | None = None
    ) -> list[list[int]]:
        """What `encode` gives for each text, with all processor cores at work."""
        texts = list(texts)
        for text in texts:
            check_has_no_half_characters(text)
        if continues is None or not any(continues) or not self.leading_space:
            return self.vocabulary.encode_batch(texts)

        marked = [MARKER * goes_on + text for text, goes_on in zip(texts, continues, strict=True)]
        rows = self.vocabulary.encode_batch(marked)
        return [
            row[self.marker_length :] if goes_on else row
            for row, goes_on in zip(rows, continues, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens appear as their names, broken UTF-8 as U+FFFD."""
        text = b"".join(self.bytes_of(token_id) for token_id in ids)
        if self.vocabulary.strips_space:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", errors="replace")

    def stream(self) -> TextStream:
        """A decoder that takes one id at a time."""
        return TextStream(self)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that an id stands for; none if the vocabulary has no such id."""
        if token_id not in self.bytes_by_id:
            self.bytes_by_id[token_id] = self.vocabulary.bytes_of(token_id)
        return self.bytes_by_id[token_id]


class TextStream:
    """Decodes ids as they arrive; everything it returned, joined, is what `decode` says of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.at_start = True

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: empty while a character still lacks bytes."""
        text = self.tokenizer.bytes_of(token_id)
        if text and self.at_start:
            self.at_start = False
            if self.tokenizer.vocabulary.strips_space:
                text = text.removeprefix(b" ")
        return self.utf8.decode(text)

    def flush(self) -> str:
        """U+FFFD if the ids ended within a character, else nothing."""
        return self.utf8.decode(b"", final=True)


def check_has_no_half_characters(text: str) -> None:
    """Refuses a lone surrogate, which JSON can express (as an escape) and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds half a character ({text[error.start]!a} at index {error.start} of "
            f"{len(text)}), as JSON does that was cut inside an emoji; take it out"
        ) from None


def read_config(path: Path) -> dict[str, Any]:
    """What a tokenizer_config.json says of BOS and of the chat template; nothing without the file.

    Raises:
        ValueError: if the file is not JSON, or if one of these fields holds something else.
    """
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; download it again") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds {type(raw).__name__}, not an object")
    bos_token, template = raw.get("bos_token"), raw.get("chat_template")
    if isinstance(bos_token, dict):
        bos_token = bos_token.get("content")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    config = {
        "bos_token": (bos_token, str),
        "add_bos_token": (raw.get("add_bos_token"), bool),
        "chat_template": (template, str),
    }
    for name, (value, kind) in config.items():
        if not isinstance(value, kind | None):
            raise ValueError(f"{path}: {name} is {str(value)[:60]!r}, which is not understood")
    return {name: value for name, (value, _) in config.items()}


def read_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template's text: in its own file, or in the config."""
    own_file = folder / "chat_template.jinja"
    if not own_file.exists():
        return config.get("chat_template")
    try:
        return own_file.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise ValueError(f"{own_file} cannot be read: {error}; download it again") from None
