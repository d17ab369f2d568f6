"""Which chat format a model has, and what no format renders. About 3 seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_templates import NAMES, write_model_folders
from texts import write_small_llama3_tokenizer

from data.chat_format import Message, chat_format_of
from data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folders(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_model_folders(assets, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", NAMES)
def test_the_format_is_told_by_the_template(folders: dict[str, Path], name: str) -> None:
    assert chat_format_of(Tokenizer.from_folder(folders[name])).name == name


def test_special_tokens_tell_llama_3_where_there_is_no_template(tmp_path: Path) -> None:
    """As for a base model. The vocabulary is a small one of our own."""
    tokenizer = Tokenizer.from_folder(write_small_llama3_tokenizer(tmp_path))
    chat_format = chat_format_of(tokenizer)
    assert chat_format.name == "Llama 3.1"
    rendered = chat_format.render([Message("system", " Be brief. "), Message("user", "Hi")], True)
    assert tokenizer.decode(rendered.ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_special_tokens_tell_chatml_where_there_is_no_template(
    assets: Path, tmp_path: Path
) -> None:
    """Then nobody knows a default system turn, and there is none."""
    shutil.copy(assets / "smollm2-135m-instruct" / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    rendered = chat_format_of(tokenizer).render([Message("user", "Hi")])
    assert tokenizer.decode(rendered.ids) == "<|im_start|>user\nHi<|im_end|>\n"


def test_an_unknown_template_is_refused_with_its_first_words(tmp_path: Path) -> None:
    folder = write_small_llama3_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}\n<start_of_turn>{{ m }}")
    with pytest.raises(ValueError, match=r"begins '{% for m in messages %} <start_of_turn>") as it:
        chat_format_of(Tokenizer.from_folder(folder))
    for name in NAMES:
        assert name in str(it.value)


def test_a_model_that_was_never_taught_to_chat_is_refused(assets: Path) -> None:
    with pytest.raises(ValueError, match=r"no chat template.* control tokens are <unk> <s> </s>;"):
        chat_format_of(Tokenizer.from_folder(assets / "stories260k"))


def test_a_template_whose_control_tokens_are_missing_is_refused(tmp_path: Path) -> None:
    folder = write_small_llama3_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text("<|im_start|>{{ messages }}<|im_end|>")
    with pytest.raises(ValueError, match=r"ChatML needs the control token <\|im_start\|>"):
        chat_format_of(Tokenizer.from_folder(folder))


@pytest.mark.parametrize("role", ["tool", "System", "user ", "", "ipython", "<|eot_id|>"])
def test_a_role_outside_the_three_is_refused_by_name(role: str) -> None:
    """Seen to fail when any role was taken (a header is made of it)."""
    with pytest.raises(ValueError, match="unknown role") as refusal:
        Message(role, "text")
    assert repr(role) in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_system_speaks_first_or_not_at_all(folders: dict[str, Path], name: str) -> None:
    """Seen to fail when later turns by the system were rendered, as most templates would."""
    chat_format = chat_format_of(Tokenizer.from_folder(folders[name]))
    late = [Message("user", "a"), Message("assistant", "b"), Message("system", "c")]
    with pytest.raises(ValueError, match="turn 3 is by the system"):
        chat_format.render(late)
    with pytest.raises(ValueError, match="turn 2 is by the system"):
        chat_format.render([Message("system", "a"), Message("system", "b")])
    with pytest.raises(ValueError, match="the conversation is empty"):
        chat_format.render([])


def test_half_a_character_in_a_turn_is_refused(tmp_path: Path) -> None:
    chat_format = chat_format_of(Tokenizer.from_folder(write_small_llama3_tokenizer(tmp_path)))
    with pytest.raises(ValueError, match="half a character"):
        chat_format.render([Message("user", "\udc00")])
