"""What a GGUF says of conversations is what the chat formats say.

Takes a quarter of a minute. Seen to fail when a template of our own did not trim, when its date was
another, when the end of a turn was taken from tokenizer_config.json (which for a base model of
Llama 3 names the end of a text), and when the other ends were left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny_llama
from hub_templates import Pair, conversations
from llama_cpp import LlamaCpp, WeightsOf, export
from texts import write_small_llama3_tokenizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from data.chat_format import Message, chat_format_of, name_of_format
from data.tokenizer import Tokenizer
from publish.chat import WRITTEN, Chat, read_chat

jinja2 = pytest.importorskip("jinja2")


def small_chatml_tokenizer(folder: Path) -> Path:
    """A vocabulary with ChatML's control tokens, and no template."""
    write_small_llama3_tokenizer(folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = []
    backend = Backend.from_str(json.dumps(raw))
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def chat_of(folder: Path) -> Chat:
    return read_chat(folder, Tokenizer.from_folder(folder))


MAKE = {"Llama 3.1": write_small_llama3_tokenizer, "ChatML": small_chatml_tokenizer}


@pytest.mark.parametrize("name", MAKE)
def test_a_model_without_a_template_gets_that_of_its_format(tmp_path, name):
    """Run by Jinja as transformers does, in which control tokens of the text cannot occur."""
    folder = MAKE[name](tmp_path)
    chat_format = chat_format_of(Tokenizer.from_folder(folder))
    chat = chat_of(folder)
    assert chat_format.name == name and chat.template == WRITTEN[name] and chat.notes == ()
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(chat.template)
    for conversation in conversations(60, seed=3):
        for prompt in (True, False):
            messages = [Message(**turn) for turn in conversation]
            pieces = chat_format.write(messages, prompt)
            written = template.render(
                messages=conversation, bos_token="<|begin_of_text|>", add_generation_prompt=prompt
            )
            assert written == "".join(piece.text for piece in pieces)


def test_our_templates_are_told_for_what_they_are(tmp_path):
    for name, make in MAKE.items():
        folder = make(tmp_path / name)
        (folder / "chat_template.jinja").write_text(WRITTEN[name])
        assert name_of_format(Tokenizer.from_folder(folder)) == name
        assert chat_of(folder).template == WRITTEN[name]


def test_an_answer_ends_where_the_format_ends_a_turn_whatever_the_files_say(tmp_path):
    """A base model's files end a text where a chat goes on, and Instruct's ends are several."""
    folder = write_small_llama3_tokenizer(tmp_path)
    ids = Tokenizer.from_folder(folder).control_ids
    end_of_text, eom, eot = (ids[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    for stops in (end_of_text, [end_of_text, eom, eot]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        chat = chat_of(folder)
        assert chat.end_id == eot
        assert chat.other_end_ids == (eom, end_of_text)


def test_the_ends_of_every_known_format_are_those_of_the_hub(pairs: dict[str, Pair], folders):
    expected = {"ChatML": "<|im_end|>", "Zephyr": "</s>", "Llama 2": "</s>"}
    for name, pair in pairs.items():
        chat = read_chat(folders[name], pair.ours.tokenizer)
        assert chat.template == pair.ours.tokenizer.chat_template
        assert pair.theirs.convert_ids_to_tokens(chat.end_id) == expected.get(name, "<|eot_id|>")
        assert not chat.notes


def test_a_model_that_is_not_known_to_converse_is_exported_with_a_word_about_it(tmp_path, assets):
    stories = chat_of(assets / "stories260k")
    assert stories.template is None and stories.end_id == 2
    assert len(stories.notes) == 1 and "not to chat" in stories.notes[0]

    folder = write_small_llama3_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "config.json").write_text('{"eos_token_id": [5, 6]}')
    unknown = chat_of(folder)
    assert unknown.template == "{{ messages }}"
    assert (unknown.end_id, unknown.other_end_ids) == (5, (6,))
    assert "unknown chat format" in unknown.notes[0] and "\n" not in unknown.notes[0]


@pytest.mark.parametrize("name", ["Zephyr", "Llama 2"])
def test_llama_cpp_writes_a_chat_into_the_ids_that_it_was_trained_on(folders, tmp_path, name):
    """The Hub's template as llama.cpp runs it, where no text holds a control token.

    For the other formats see test_gguf_vocabulary.py, test_gguf_smollm.py and test_gguf_llamas.py.
    """
    tokenizer = Tokenizer.from_folder(folders[name])
    model = tiny_llama(vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1)
    export(WeightsOf(model), folders[name], "f16", tmp_path / "m.gguf")
    llama_cpp, chat_format = LlamaCpp(tmp_path / "m.gguf"), chat_format_of(tokenizer)
    conversation = [
        {"role": "user", "content": "Hello there, it's 12345!"},
        {"role": "assistant", "content": "Hi. How are you?"},
        {"role": "user", "content": "Fine.\n\nAnd you?"},
    ]
    system = {"role": "system", "content": "Be kind."}
    for turns in (conversation, [system, *conversation]):
        text = llama_cpp.chat_prompt(turns)
        wanted = chat_format.render([Message(**turn) for turn in turns], True).ids
        assert llama_cpp.tokenize(text, is_chat=True) == wanted
