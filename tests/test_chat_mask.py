"""Which ids an assistant wrote, in the four chat formats. About 15 seconds."""

from __future__ import annotations

import pytest
from hub_templates import (
    FOLDERS,
    HELLO,
    NAMES,
    Pair,
    conversations,
    expressible_in,
)
from texts import expressible

from data.chat_format import Rendered


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
    """Also where an answer is empty, or looks like a header, or like the whole prompt.

    Seen to fail when the mask was shifted by one, held the header, or left out the end token.
    """
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
