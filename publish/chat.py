"""What a GGUF has to say of conversations: the template that writes them, and where answers end.

A GGUF without a template, or with the wrong token for the end of a turn, runs, and answers badly or
without end: whoever runs it writes the turns in another format, or waits for another token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.chat_format import ChatFormat, Message, chat_format_of
from data.tokenizer import Tokenizer
from model.config import read_json
from model.generation_config import stop_ids

# For models that are told by their control tokens, having no template of their own: a base model
# that was fine-tuned here converses in these formats (see `data/chat_templates.py`). The date is
# the one that it was trained with: llama.cpp would put today's in the place of a `date_string`.
LLAMA3_TEMPLATE = r"""{{- bos_token }}
{%- set turns = messages %}
{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set turns = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}
{{- 'Today Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}
{%- for turn in turns %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' }}
    {{- turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
CHATML_TEMPLATE = (
    r"{% for turn in messages %}"
    r"{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>\n' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WRITTEN = {"Llama 3.1": LLAMA3_TEMPLATE, "ChatML": CHATML_TEMPLATE}


@dataclass(frozen=True)
class Chat:
    """How a model converses.

    Attributes:
        template: Jinja text; None if nothing says how.
        end_id: the id that ends an assistant's turn; None if nothing says which.
        other_end_ids: further ids at which an answer is over, the likeliest first.
        pad_id: the id that fills up the shorter texts of a batch, if the tokenizer names one.
        notes: what the user has to know about the above, a line each.
    """

    template: str | None
    end_id: int | None
    other_end_ids: tuple[int, ...]
    pad_id: int | None
    notes: tuple[str, ...] = ()


def read_chat(folder: Path, tokenizer: Tokenizer) -> Chat:
    """How the model in `folder` converses, by its tokenizer's and generation's files.

    Raises:
        ValueError: if one of the files cannot be read.
    """
    stops = stop_ids(folder)
    pad_id = control_id(folder, "pad_token", tokenizer)
    try:
        chat_format = chat_format_of(tokenizer)
    except ValueError as error:
        return unknown_chat(folder, tokenizer, stops, pad_id, str(error))
    end_id = end_of_turn(chat_format)
    others = (stops | chat_format.end_ids) - {end_id}
    template = tokenizer.chat_template or WRITTEN[chat_format.name]
    return Chat(template, end_id, in_order(others, tokenizer), pad_id)


def end_of_turn(chat_format: ChatFormat) -> int:
    """The id that the format puts behind what an assistant says."""
    turns = [Message("user", "?"), Message("assistant", "!")]
    rendered = chat_format.render(turns)
    return [i for i, own in zip(rendered.ids, rendered.by_assistant, strict=True) if own][-1]


def in_order(ids: frozenset[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """End ids with the one first that ends a message within a turn (Llama 3.1's calls of tools)."""
    end_of_message = tokenizer.control_ids.get("<|eom_id|>")
    return tuple(sorted(ids, key=lambda i: (i != end_of_message, i)))


def unknown_chat(
    folder: Path, tokenizer: Tokenizer, stops: frozenset[int], pad_id: int | None, problem: str
) -> Chat:
    """What can be said of a model whose chat format is not known here."""
    end_id = control_id(folder, "eos_token", tokenizer)
    if stops and end_id not in stops:
        end_id = min(stops)
    fate = (
        "the template is in the file as it is"
        if tokenizer.chat_template
        else "the file has no template either, so use it to continue texts, not to chat"
    )
    others = in_order(stops - {end_id}, tokenizer)
    return Chat(tokenizer.chat_template, end_id, others, pad_id, (f"{problem}; {fate}",))


def control_id(folder: Path, name: str, tokenizer: Tokenizer) -> int | None:
    """The id of the token that tokenizer_config.json calls `name`."""
    path = folder / "tokenizer_config.json"
    token = read_json(path).get(name) if path.is_file() else None
    if isinstance(token, dict):
        token = token.get("content")
    return tokenizer.control_ids.get(token) if isinstance(token, str) else None
