"""The Hub's side of the chat formats: templates, model folders, and transformers to run them.

The Hub's templates of Llama 3.2 and SmolLM2 come with their tokenizers. Those of Llama 3.0, Zephyr
(as TinyLlama has it) and Llama 2 are below; the vocabulary for the latter two is Mistral's first,
which is of Llama 2's kind.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from texts import random_conversation

from data.chat_format import ChatFormat, Message, Rendered, chat_format_of
from data.tokenizer import Tokenizer

LLAMA_3_0 = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
LLAMA_2 = (
    "{% set system = false %}{% set turns = messages %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}{% endif %}"
    "{% for turn in turns %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must alternate') }}{% endif %}"
    "{% set content = turn['content'] %}"
    "{% if loop.first and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + content %}{% endif %}"
    "{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

NAMES = ["Llama 3.1", "Llama 3", "ChatML", "Zephyr", "Llama 2"]
FOLDERS = {
    "Llama 3.1": ("llama3-tokenizer", None),
    "Llama 3": ("llama3-tokenizer", LLAMA_3_0),
    "ChatML": ("smollm2-135m-instruct", None),
    "Zephyr": ("mistral-v1-tokenizer", ZEPHYR),
    "Llama 2": ("mistral-v1-tokenizer", LLAMA_2),
}
CONFIG_OF_LLAMA_2 = {"bos_token": "<s>", "eos_token": "</s>"}


class Pair(NamedTuple):
    """Our format, and the Hub's tokenizer with its template."""

    ours: ChatFormat
    theirs: Any

    def render(self, conversation: list[dict[str, str]], prompt: bool = False) -> Rendered:
        """What we make of a conversation in the Hub's form."""
        return self.ours.render([Message(**turn) for turn in conversation], prompt)

    def hub_ids(
        self, conversation: list[dict[str, str]], prompt: bool = False, date: str = "26 Jul 2024"
    ) -> list[int]:
        """What the Hub's template makes of it, behind the BOS that its tokenizer adds to a text."""
        ids = self.theirs.apply_chat_template(
            conversation, add_generation_prompt=prompt, date_string=date, return_dict=False
        )
        adds_bos = self.theirs.encode("text")[0] == self.theirs.bos_token_id
        return ids if not adds_bos or ids[:1] == [self.theirs.bos_token_id] else [1, *ids]


def write_model_folders(assets: Path, folder: Path) -> dict[str, Path]:
    """A folder for each format, with its tokenizer and its template."""
    made = {}
    for name, (source, template) in FOLDERS.items():
        made[name] = folder / name
        made[name].mkdir()
        for file in (assets / source).glob("token*.json"):
            shutil.copy(file, made[name])
        config = made[name] / "tokenizer_config.json"
        if template is not None:
            settings = json.loads(config.read_text()) if config.exists() else CONFIG_OF_LLAMA_2
            config.write_text(json.dumps(settings | {"chat_template": template}))
    return made


def load_pairs(folders: dict[str, Path]) -> dict[str, Pair]:
    """Ours and theirs for each of the folders."""
    return {name: load_pair(folder) for name, folder in folders.items()}


def load_pair(folder: Path) -> Pair:
    """Ours and theirs for a model folder; skips the test where there is no transformers."""
    transformers = pytest.importorskip("transformers")
    ours = chat_format_of(Tokenizer.from_folder(folder))
    return Pair(ours, transformers.PreTrainedTokenizerFast.from_pretrained(folder))


def conversations(count: int, seed: int, blank_ends: bool = True) -> list[list[dict[str, str]]]:
    rng = random.Random(seed)
    return [random_conversation(rng, blank_ends) for _ in range(count)]


def expressible_in(name: str, conversation: list[dict[str, str]]) -> bool:
    """Llama 2 needs a user's turn, for the system's text to stand in."""
    return name != "Llama 2" or conversation[-1]["role"] != "system"


HELLO = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hey there! How are you?"},
    {"role": "user", "content": "I'm great thanks!"},
    {"role": "assistant", "content": "Glad to hear it."},
]
# fmt: off
HELLO_IDS = [
    128000, 128006, 9125, 128007, 271, 38766, 1303, 33025, 2696, 25, 6790, 220, 2366, 18, 198,
    15724, 2696, 25, 220, 1627, 10263, 220, 2366, 19, 271, 128009,
    128006, 882, 128007, 271, 9906, 0, 128009,
    128006, 78191, 128007, 271, 19182, 1070, 0, 2650, 527, 499, 30, 128009,
    128006, 882, 128007, 271, 40, 2846, 2294, 9523, 0, 128009,
    128006, 78191, 128007, 271, 38, 18599, 311, 6865, 433, 13, 128009,
]
# fmt: on


@pytest.fixture(scope="module")
def folders(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder for each format."""
    return write_model_folders(assets, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, Pair]:
    """Our side and the Hub's of each format."""
    return load_pairs(folders)
