"""The four chat formats against the Hub's templates, run by transformers. About 25 seconds.

The Hub's templates of Llama 3.2 and SmolLM2 come with their tokenizers. Those of Llama 3.0, Zephyr
(as TinyLlama has it) and Llama 2 are below; the vocabulary for the latter two is Mistral's first,
which is of Llama 2's kind.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from texts import expressible, random_conversation, write_small_llama3_tokenizer

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


@pytest.fixture(scope="session")
def folders(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder for each format."""
    made = {}
    for name, (source, template) in FOLDERS.items():
        folder = tmp_path_factory.mktemp("model")
        for file in (assets / source).glob("token*.json"):
            shutil.copy(file, folder)
        config = folder / "tokenizer_config.json"
        if template is not None:
            settings = json.loads(config.read_text()) if config.exists() else CONFIG_OF_LLAMA_2
            config.write_text(json.dumps(settings | {"chat_template": template}))
        made[name] = folder
    return made


@pytest.fixture(scope="session")
def pairs(folders: dict[str, Path]) -> dict[str, Pair]:
    transformers = pytest.importorskip("transformers")
    load = transformers.PreTrainedTokenizerFast.from_pretrained
    return {
        name: Pair(chat_format_of(Tokenizer.from_folder(folder)), load(folder))
        for name, folder in folders.items()
    }


def conversations(count: int, seed: int, blank_ends: bool = True) -> list[list[dict[str, str]]]:
    rng = random.Random(seed)
    return [random_conversation(rng, blank_ends) for _ in range(count)]


def expressible_in(name: str, conversation: list[dict[str, str]]) -> bool:
    """Llama 2 needs a user's turn, for the system's text to stand in."""
    return name != "Llama 2" or conversation[-1]["role"] != "system"


# The same ids as the Hub. -------------------------------------------------------------------------


def test_llama_3_2_gives_the_hubs_ids_for_5000_conversations(pairs: dict[str, Pair]) -> None:
    """Blank and missing texts, code and U+0085 among them; as training text and as prompt.

    Seen to fail when turns were not trimmed, when the date came from the clock, when a second BOS
    was put in front, and when control tokens were parsed out of text.
    """
    pair = pairs["Llama 3.1"]
    sample = conversations(5000, seed=1)
    messages = [[Message(**turn) for turn in conversation] for conversation in sample]
    for prompt in (False, True):
        for conversation, ours in zip(
            sample, pair.ours.render_batch(messages, prompt), strict=True
        ):
            assert ours.ids == pair.hub_ids(conversation, prompt)


@pytest.mark.parametrize("date", ["01 Jan 2025", "29 Feb 2028", "26 July 2024"])
def test_the_date_is_a_setting(pairs: dict[str, Pair], date: str) -> None:
    pair = pairs["Llama 3.1"]
    dated = Pair(chat_format_of(pair.ours.tokenizer, date), pair.theirs)
    for conversation in conversations(200, seed=2):
        assert dated.render(conversation).ids == pair.hub_ids(conversation, date=date)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [False, True])
def test_every_format_gives_the_hubs_ids(pairs: dict[str, Pair], name: str, prompt: bool) -> None:
    """1,000 conversations whose texts neither begin nor end with a blank.

    Seen to fail when text behind a header got SentencePiece's leading space, and when BOS was put
    in front of ChatML.
    """
    for conversation in conversations(1000, seed=3, blank_ends=False):
        if expressible_in(name, conversation):
            ours = pairs[name].render(conversation, prompt)
            assert ours.ids == pairs[name].hub_ids(conversation, prompt)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_hubs_text_whatever_the_blanks(
    pairs: dict[str, Pair], name: str
) -> None:
    """Where an answer begins with a blank, the ids may differ (see `data.chat_format`).

    The text may not. Blanks at the ends of the others' turns do not change the ids either.
    """
    tokenizer = pairs[name].ours.tokenizer
    for conversation in conversations(300, seed=4):
        if expressible_in(name, conversation):
            ours = tokenizer.decode(pairs[name].render(conversation).ids)
            assert ours == tokenizer.decode(pairs[name].hub_ids(conversation))
            for turn in conversation:
                if turn["role"] == "assistant":
                    turn["content"] = "x" + turn["content"]
            assert pairs[name].render(conversation).ids == pairs[name].hub_ids(conversation)


@pytest.mark.parametrize("name", ["Zephyr", "Llama 2"])
def test_a_vocabulary_that_spaces_only_the_very_start_gives_the_hubs_ids(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """As newer libraries save Llama 2's kind: no space after a control token.

    Seen to fail when `spaces_segments` was taken as true.
    """
    transformers = pytest.importorskip("transformers")
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    parts = json.loads(file.read_text())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    file.write_text(json.dumps(parts | {"normalizer": None, "pre_tokenizer": metaspace}))
    pair = Pair(
        chat_format_of(Tokenizer.from_folder(tmp_path)),
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
    )
    for conversation in conversations(300, seed=9, blank_ends=False):
        if expressible_in(name, conversation):
            assert pair.render(conversation).ids == pair.hub_ids(conversation)


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


def test_llama_3_2_gives_these_66_ids(folders: dict[str, Path]) -> None:
    """A golden example that needs no oracle: made by the Hub's template and Meta's tokenizer."""
    tokenizer = Tokenizer.from_folder(folders["Llama 3.1"])
    messages = [Message(**turn) for turn in HELLO]
    rendered = chat_format_of(tokenizer).render(messages)
    assert rendered.ids == HELLO_IDS
    # The mask, too: the answers' words and their end tokens.
    assert [i for i, by in enumerate(rendered.by_assistant) if by] == [
        *range(37, 45),
        *range(59, 66),
    ]
    assert chat_format_of(tokenizer).render(messages[:3], True).ids == HELLO_IDS[:59]

    other_day = chat_format_of(tokenizer, date="01 Jan 2025").render(messages)
    changed = {(a, b) for a, b in zip(HELLO_IDS, other_day.ids, strict=True) if a != b}
    assert changed == {(1627, 1721), (10263, 4448), (19, 20)}


def test_llama_3_2_trims_each_turn(folders: dict[str, Path]) -> None:
    chat_format = chat_format_of(Tokenizer.from_folder(folders["Llama 3.1"]))
    loose = [Message("user", "  Hi \n"), Message("assistant", "\u0085 Hello. \n")]
    tight = [Message("user", "Hi"), Message("assistant", "Hello.")]
    assert chat_format.render(loose) == chat_format.render(tight)
    assert len(chat_format.render(loose).ids) == 39


# Which tokens an assistant wrote. -----------------------------------------------------------------


def mask_by_growing_prefix(pair: Pair, conversation: list[dict[str, str]]) -> list[bool]:
    """From the Hub's ids alone: an answer is what comes after its prompt, up to its end token."""
    ids = pair.hub_ids(conversation)
    mask = [False] * len(ids)
    for i, turn in enumerate(conversation):
        if turn["role"] == "assistant":
            start = len(pair.hub_ids(conversation[:i], prompt=True))
            end = len(pair.hub_ids(conversation[: i + 1]))
            while ids[end - 1] not in pair.ours.end_ids:
                end -= 1  # what the template writes after the end token
            mask[start:end] = [True] * (end - start)
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_is_what_the_template_adds_to_the_prompt(
    pairs: dict[str, Pair], name: str
) -> None:
    """1,000 conversations, each rendered by the Hub's template once for every answer.

    Seen to fail when the mask was shifted by one, when it held the header, when it left out the
    end token, and when it held the line break after it.
    """
    for conversation in conversations(1000, seed=5, blank_ends=False):
        if expressible_in(name, conversation):
            ours = pairs[name].render(conversation)
            assert ours.by_assistant == mask_by_growing_prefix(pairs[name], conversation)


def stretches(rendered: Rendered) -> list[list[int]]:
    """The runs of ids under the mask; each answer is one, since headers stand between them."""
    found: list[list[int]] = []
    for before, now, token_id in zip(
        [False, *rendered.by_assistant], rendered.by_assistant, rendered.ids, strict=False
    ):
        if now and not before:
            found.append([])
        if now:
            found[-1].append(token_id)
    return found


WRITTEN = {
    "Llama 3.1": lambda text: f"{text.strip()}<|eot_id|>",
    "Llama 3": lambda text: f"{text.strip()}<|eot_id|>",
    "ChatML": lambda text: f"{text}<|im_end|>",
    "Zephyr": lambda text: f"{text}</s>",
    "Llama 2": lambda text: f" {text.strip()} </s>",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_ids_under_the_mask_spell_the_answers_and_their_ends(
    pairs: dict[str, Pair], name: str
) -> None:
    """Also where an answer is empty, or looks like a header, or like the whole prompt."""
    tokenizer = pairs[name].ours.tokenizer
    header = tokenizer.decode(pairs[name].hub_ids(HELLO[:1], prompt=True)).replace("</s>", "")
    sample = conversations(300, seed=6)
    for text in ("", " ", "\n\n", header, header.strip(), "assistant\n", "\n\nassistant\n\n"):
        sample.append([{"role": role, "content": text} for role in ("user", "assistant")] * 2)
    for conversation in sample:
        if not expressible_in(name, conversation):
            continue
        for turn in conversation:
            turn["content"] = expressible(turn["content"], FOLDERS[name][0])
        rendered = pairs[name].render(conversation)
        spelled = [b"".join(map(tokenizer.bytes_of, ids)).decode() for ids in stretches(rendered)]
        answers = [turn["content"] for turn in conversation if turn["role"] == "assistant"]
        assert spelled == [WRITTEN[name](answer) for answer in answers]


@pytest.mark.parametrize("name", NAMES)
def test_training_continues_the_very_ids_of_the_prompt(pairs: dict[str, Pair], name: str) -> None:
    """Whatever blanks an answer begins with; also for Llama 2, whose prompts end like any turn.

    Seen to fail when an answer was encoded together with its header.
    """
    for conversation in conversations(300, seed=7):
        if not expressible_in(name, conversation):
            continue
        whole = pairs[name].render(conversation)
        for i, turn in enumerate(conversation):
            if turn["role"] == "assistant":
                prompt = pairs[name].render(conversation[:i], prompt=True)
                assert whole.ids[: len(prompt.ids)] == prompt.ids
                assert not any(prompt.by_assistant[-1:])
                assert whole.by_assistant[len(prompt.ids)]


# One BOS, one date, one end. ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [False, True])
def test_there_is_one_bos_and_it_comes_first(
    pairs: dict[str, Pair], name: str, prompt: bool
) -> None:
    """Llama 2 has one for each exchange, as its template says; SmolLM2 has none at all.

    (What SmolLM2's file calls its BOS is <|im_start|>, which opens every turn.)
    Seen to fail when a BOS was put in front of a template that writes its own.
    """
    for conversation in conversations(300, seed=8):
        if not expressible_in(name, conversation):
            continue
        rendered = pairs[name].render(conversation, prompt)
        if name == "ChatML":
            system = conversation[0]["role"] != "system"
            expected = len(conversation) + system + prompt
        elif name == "Llama 2":
            expected = sum(turn["role"] == "user" for turn in conversation)
        else:
            expected = 1
        bos_id = pairs[name].ours.tokenizer.bos_id
        assert rendered.ids[0] == bos_id
        assert rendered.ids.count(bos_id) == expected
        assert not rendered.by_assistant[0]


def test_the_clock_changes_nothing(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two days, by the clock and by the time zone. Seen to fail when the date was today's."""
    tokenizer = Tokenizer.from_folder(folders["Llama 3.1"])
    messages = [Message(**turn) for turn in HELLO]
    rendered = []
    for seconds, zone in ((1_000_000_000, "AAA-167"), (1_900_000_000, "AAA+167")):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: float(seconds))
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        rendered.append(chat_format_of(tokenizer).render(messages))
    monkeypatch.undo()
    time.tzset()
    assert rendered[0] == rendered[1]
    assert rendered[0].ids == HELLO_IDS


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("Llama 3.1", {128001, 128008, 128009}),
        ("Llama 3", {128001, 128008, 128009}),
        ("ChatML", {0, 2}),
        ("Zephyr", {2}),
        ("Llama 2", {2}),
    ],
)
def test_a_turn_ends_by_an_id_and_never_by_text(
    folders: dict[str, Path], name: str, ends: set[int]
) -> None:
    """Llama 3.2's are those of its generation_config.json."""
    tokenizer = Tokenizer.from_folder(folders[name])
    chat_format = chat_format_of(tokenizer)
    assert chat_format.end_ids == ends
    for token_id in ends:
        assert ends.isdisjoint(tokenizer.encode(tokenizer.decode([token_id])))


# Which format a model has. ------------------------------------------------------------------------


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


# What cannot be rendered. -------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["tool", "System", "user ", "", "ipython", "<|eot_id|>"])
def test_a_role_outside_the_three_is_refused_by_name(role: str) -> None:
    with pytest.raises(ValueError, match="unknown role") as refusal:
        Message(role, "text")
    assert repr(role) in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_system_speaks_first_or_not_at_all(folders: dict[str, Path], name: str) -> None:
    chat_format = chat_format_of(Tokenizer.from_folder(folders[name]))
    late = [Message("user", "a"), Message("assistant", "b"), Message("system", "c")]
    with pytest.raises(ValueError, match="turn 3 is by the system"):
        chat_format.render(late)
    with pytest.raises(ValueError, match="turn 2 is by the system"):
        chat_format.render([Message("system", "a"), Message("system", "b")])
    with pytest.raises(ValueError, match="the conversation is empty"):
        chat_format.render([])


def test_odd_orders_are_rendered_as_the_hub_renders_them(pairs: dict[str, Pair]) -> None:
    """All but Llama 2, whose template refuses them."""
    odd = [
        ["assistant"],
        ["user", "user"],
        ["system"],
        ["system", "assistant", "assistant", "user"],
        ["user", "assistant", "assistant"],
    ]
    for roles in odd:
        turns = [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]
        for name in ("Llama 3.1", "Llama 3", "ChatML", "Zephyr"):
            assert pairs[name].render(turns).ids == pairs[name].hub_ids(turns)
        with pytest.raises(ValueError, match=f"user first, not: {', '.join(roles)}$"):
            pairs["Llama 2"].render(turns)


def test_half_a_character_in_a_turn_is_refused(tmp_path: Path) -> None:
    chat_format = chat_format_of(Tokenizer.from_folder(write_small_llama3_tokenizer(tmp_path)))
    with pytest.raises(ValueError, match="half a character"):
        chat_format.render([Message("user", "\udc00")])
