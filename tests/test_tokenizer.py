"""Ids and text against tokenizers, sentencepiece and transformers. About 10 seconds."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import tokenizers
from texts import expressible, random_character, random_text, write_small_llama3_tokenizer

from data.tokenizer import Tokenizer
from data.vocabulary import BYTE_BY_CHARACTER

BYTE_LEVEL = ["llama3-tokenizer", "smollm2-135m-instruct"]
SENTENCEPIECE = ["mistral-v1-tokenizer", "stories260k"]


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng) for _ in range(count)]


def only_model_file(assets: Path, name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a folder that has nothing but tokenizer.model."""
    shutil.copy(assets / name / "tokenizer.model", folder)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("name", BYTE_LEVEL + SENTENCEPIECE)
def test_content_ids_are_those_of_transformers(assets: Path, name: str) -> None:
    """5,000 random texts, through `encode` and `encode_batch`."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(assets / name / "tokenizer.json")
    )
    ours = Tokenizer.from_folder(assets / name)
    samples = texts(5000, seed=1)
    expected = [theirs.encode(text, add_special_tokens=False) for text in samples]
    assert ours.encode_batch(samples) == expected
    assert [ours.encode(text) for text in samples[:500]] == expected[:500]


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_tokenizer_model_gives_the_ids_of_tokenizer_json(
    assets: Path, tmp_path: Path, name: str
) -> None:
    """Two libraries, sentencepiece and tokenizers; also for text that goes on after other text."""
    from_json = Tokenizer.from_folder(assets / name)
    from_model = only_model_file(assets, name, tmp_path)
    samples = texts(3000, seed=2)
    assert from_model.encode_batch(samples) == from_json.encode_batch(samples)
    after_text = [True] * len(samples)
    assert from_model.encode_batch(samples, after_text) == from_json.encode_batch(
        samples, after_text
    )
    for sample in samples[:300]:
        ids = from_json.encode(sample)
        assert from_model.decode(ids) == from_json.decode(ids)
    assert from_model.control_ids == from_json.control_ids
    assert (from_model.bos_id, from_model.adds_bos, from_model.vocab_size) == (
        from_json.bos_id,
        from_json.adds_bos,
        from_json.vocab_size,
    )


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_text_that_continues_other_text_gets_no_space_of_its_own(assets: Path, name: str) -> None:
    """After a line break, which no piece of these vocabularies holds, the parts are the whole.

    Seen to fail when `continues` was ignored.
    """
    ours = Tokenizer.from_folder(assets / name)
    header = "<|assistant|>\n"
    for text in texts(1000, seed=4):
        joint = ours.encode(header + text)
        assert ours.encode(header) + ours.encode(text, continues=True) == joint, repr(text)


@pytest.mark.parametrize("name", BYTE_LEVEL + SENTENCEPIECE)
def test_text_survives_encoding_and_decoding(assets: Path, name: str) -> None:
    """Seen to fail when SentencePiece's leading space was left in decoded text."""
    ours = Tokenizer.from_folder(assets / name)
    for text in texts(3000, seed=5):
        text = expressible(text, name)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("name", BYTE_LEVEL + SENTENCEPIECE)
def test_decoding_is_that_of_tokenizers(assets: Path, name: str) -> None:
    """On ids of text and, byte-level, on random ids, control ids and invalid UTF-8 among them.

    (SentencePiece's decoder writes one U+FFFD for each byte of a broken run, Python one for each
    broken character; on ids of text they agree.)
    """
    ours = Tokenizer.from_folder(assets / name)
    theirs = tokenizers.Tokenizer.from_file(str(assets / name / "tokenizer.json"))
    rng = random.Random(6)
    rows = [ours.encode(text) for text in texts(2000, seed=6)]
    if name in BYTE_LEVEL:
        rows += [rng.choices(range(ours.vocab_size), k=rng.randrange(30)) for _ in range(2000)]
        rows += [rng.choices(range(1000), k=rng.randrange(30)) for _ in range(2000)]
    for ids in rows:
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", BYTE_LEVEL + SENTENCEPIECE)
def test_control_tokens_decode_to_their_names(assets: Path, name: str) -> None:
    ours = Tokenizer.from_folder(assets / name)
    assert ours.decode(ours.control_ids.values()) == "".join(ours.control_ids)


def test_an_id_outside_the_vocabulary_has_no_text(assets: Path, tmp_path: Path) -> None:
    """A model may have more rows in its embedding than the tokenizer has ids."""
    for ours in (
        Tokenizer.from_folder(assets / "stories260k"),
        only_model_file(assets, "stories260k", tmp_path),
    ):
        assert ours.decode([ours.vocab_size, ours.vocab_size + 1000]) == ""


@pytest.mark.parametrize(
    ("name", "bos_id", "adds_bos", "vocab_size"),
    [
        ("llama3-tokenizer", 128000, True, 128256),
        ("smollm2-135m-instruct", 1, False, 49152),
        ("mistral-v1-tokenizer", 1, True, 32000),
        ("stories260k", 1, True, 512),
    ],
)
def test_bos_is_what_the_tokenizer_itself_puts_in_front(
    assets: Path, name: str, bos_id: int, adds_bos: bool, vocab_size: int
) -> None:
    ours = Tokenizer.from_folder(assets / name)
    theirs = tokenizers.Tokenizer.from_file(str(assets / name / "tokenizer.json"))
    assert (ours.bos_id, ours.adds_bos, ours.vocab_size) == (bos_id, adds_bos, vocab_size)
    assert (theirs.encode("text").ids[0] == bos_id) == adds_bos


@pytest.mark.parametrize("says", [True, False])
def test_tokenizer_config_has_the_last_word_on_bos(tmp_path: Path, says: bool) -> None:
    folder = write_small_llama3_tokenizer(tmp_path)
    config = {"bos_token": {"content": "<|begin_of_text|>"}, "add_bos_token": says}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_folder(folder)
    assert ours.bos_id == ours.control_ids["<|begin_of_text|>"]
    assert ours.adds_bos == says


def test_a_tokenizer_without_any_hint_has_no_bos(tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(write_small_llama3_tokenizer(tmp_path))
    assert (ours.bos_id, ours.adds_bos, ours.chat_template) == (None, False, None)


def test_truncation_and_padding_stored_in_the_file_are_not_applied(tmp_path: Path) -> None:
    """Seen to fail when `no_truncation` was left out."""
    folder = write_small_llama3_tokenizer(tmp_path)
    stored = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    stored.enable_truncation(5)
    stored.enable_padding(length=8)
    stored.save(str(folder / "tokenizer.json"))
    ours = Tokenizer.from_folder(folder)
    assert ours.decode(ours.encode("q w x y z 1 2 3 4 5")) == "q w x y z 1 2 3 4 5"
    assert len(ours.encode("q")) == 1


def test_chat_template_is_found_wherever_the_hub_keeps_it(tmp_path: Path) -> None:
    folder = write_small_llama3_tokenizer(tmp_path)
    config = folder / "tokenizer_config.json"

    config.write_text(json.dumps({"chat_template": "one"}))
    assert Tokenizer.from_folder(folder).chat_template == "one"

    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.from_folder(folder).chat_template == "two"

    (folder / "chat_template.jinja").write_text("three")
    assert Tokenizer.from_folder(folder).chat_template == "three"


def test_half_a_character_is_refused_with_its_place(assets: Path, tmp_path: Path) -> None:
    """JSON can hold one half of a surrogate pair. Neither library has a readable error for it."""
    text = json.loads('"cut \\ud83d here"')
    for ours in (
        Tokenizer.from_folder(assets / "stories260k"),
        only_model_file(assets, "stories260k", tmp_path),
    ):
        with pytest.raises(ValueError, match=r"half a character \('\\ud83d' at index 4 of 10\)"):
            ours.encode(text)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has neither tokenizer.json nor tokenizer.model"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
def test_a_broken_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    if name == "tokenizer_config.json":
        write_small_llama3_tokenizer(tmp_path)
    (tmp_path / name).write_text('{"cut": ')
    with pytest.raises(ValueError, match=name) as refusal:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(refusal.value)


def test_an_unknown_kind_of_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    """A WordPiece vocabulary, as BERT has."""
    model = tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    wordpiece = tokenizers.Tokenizer(model)
    for decoder in (None, tokenizers.decoders.WordPiece()):
        if decoder is not None:
            wordpiece.decoder = decoder
        wordpiece.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ValueError, match=f"decodes with {decoder and 'WordPiece'}"):
            Tokenizer.from_folder(tmp_path)


def test_every_byte_has_a_character_in_a_byte_level_vocabulary(tmp_path: Path) -> None:
    """The alphabet is that of tokenizers, so that any text and any byte has ids."""
    assert set(BYTE_BY_CHARACTER) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_BY_CHARACTER.values()) == list(range(256))
    ours = Tokenizer.from_folder(write_small_llama3_tokenizer(tmp_path))
    rng = random.Random(7)
    text = "".join(random_character(rng) for _ in range(5000))
    assert ours.decode(ours.encode(text)) == text
