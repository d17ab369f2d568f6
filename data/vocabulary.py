"""The two files in which a Llama's vocabulary comes: what is in them, and how they are read.

Either is wrapped so that it answers the same few questions: the content ids of a text, the bytes
that an id stands for, the control tokens by name, and how it treats spaces and BOS.
"""

from __future__ import annotations

import re
from pathlib import Path

import tokenizers
from sentencepiece import SentencePieceProcessor


class TokenizerJson:
    """The vocabulary in a tokenizer.json, with the parsing of control tokens turned off.

    What the file's components do is found out by trying them, rather than by parsing the JSON (9 MB
    of it for Llama 3) a second time.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            reason = " ".join(str(error).split())  # it quotes what the file says
            raise ValueError(
                f"{path} is not a tokenizer that can be read: {reason}; download it again"
            ) from None
        added = self.backend.get_added_tokens_decoder()
        self.control_ids = {token.content: token_id for token_id, token in added.items()}
        self.vocab_size = self.backend.get_vocab_size()

        decoder = self.backend.decoder
        self.is_byte_level = decoder is not None and decoder.decode(["Ġa"]) == " a"
        if not self.is_byte_level and (decoder is None or decoder.decode(["a", "▁b"]) != "a b"):
            raise ValueError(
                f"{path} decodes with {decoder}; only byte-level BPE (ByteLevel) and "
                "SentencePiece (Replace or Metaspace) are known here"
            )
        self.strips_space = not self.is_byte_level and decoder.decode(["▁a"]) == "a"

        if not self.backend.encode("a", add_special_tokens=False).ids:
            raise ValueError(f"{path} has no token for the letter a; it is empty or damaged")
        first = self.backend.encode("a").ids[0]
        self.bos_id = first if first in added else None
        self.spaces_segments = not self.is_byte_level and any(
            self.puts_space_after(token) for token in self.control_ids
        )

        self.backend.no_truncation()
        self.backend.no_padding()
        # Tokens that were added without being marked as special would still be found in text.
        self.backend.add_special_tokens([t for t in added.values() if not t.special])
        self.backend.encode_special_tokens = True

    def puts_space_after(self, control_token: str) -> bool:
        """Whether a text behind `control_token` begins with a space that nobody wrote."""
        ids = self.backend.encode(control_token + "a", add_special_tokens=False).ids
        return b"".join(map(self.bytes_of, ids)).decode() == control_token + " a"

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Content ids of each text, computed in parallel."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that an id stands for."""
        piece = self.backend.id_to_token(token_id)
        if piece is None:
            return b""
        if piece in self.control_ids:
            return piece.encode()
        return bytes_of_byte_level(piece) if self.is_byte_level else bytes_of_sentencepiece(piece)


class TokenizerModel:
    """The vocabulary in a SentencePiece tokenizer.model; its control tokens are never parsed."""

    strips_space = True
    spaces_segments = True

    def __init__(self, path: Path) -> None:
        try:
            self.backend = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError):
            raise ValueError(
                f"{path} is not a SentencePiece model; Llama 3 has its vocabulary in a "
                "tokenizer.json, which must lie in the folder"
            ) from None
        self.vocab_size = self.backend.vocab_size()
        self.control_ids = {
            self.backend.id_to_piece(token_id): token_id
            for token_id in range(self.vocab_size)
            if self.backend.is_control(token_id) or self.backend.is_unknown(token_id)
        }
        self.bos_id = self.backend.bos_id() if self.backend.bos_id() >= 0 else None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Content ids of each text, computed in parallel."""
        return self.backend.encode(texts)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that an id stands for."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        return bytes_of_sentencepiece(self.backend.id_to_piece(token_id))


def byte_by_character() -> dict[str, int]:
    """The character by which byte-level BPE writes each byte in its vocabulary.

    Bytes that print stand for themselves, the other 68 are moved up behind U+00FF. It is the
    inverse of `bytes_to_unicode` in GPT-2's encoder.py.
    """
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    moved = [byte for byte in range(256) if byte not in prints]
    return {chr(b): b for b in prints} | {chr(256 + i): b for i, b in enumerate(moved)}


BYTE_BY_CHARACTER = byte_by_character()


def bytes_of_byte_level(piece: str) -> bytes:
    """'Ġthe' is b' the': one character of the vocabulary a byte."""
    if all(character in BYTE_BY_CHARACTER for character in piece):
        return bytes(BYTE_BY_CHARACTER[character] for character in piece)
    return piece.encode()


def bytes_of_sentencepiece(piece: str) -> bytes:
    """'▁the' is b' the', and '<0x0A>' is the one byte that it names."""
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes.fromhex(piece[3:5])
    return piece.replace("▁", " ").encode()
