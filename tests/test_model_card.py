"""What the card of an adapter or a merged model says, and what it keeps to itself.

The markup is read by an independent renderer of GitHub's Markdown, the metadata by PyYAML and by
huggingface_hub. About five seconds.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
import yaml
from hub_uploads import front_matter_errors
from huggingface_hub import ModelCard

from lora.config import BaseModel
from lora.model_card import CardFacts, model_card
from lora.train_config import CHOICES, TrainConfig

HUB = BaseModel("unsloth/Llama-3.2-1B-Instruct", "ab" * 20, "cd" * 32)
LOCAL = BaseModel("llama", None, "cd" * 32)
CONFIG = TrainConfig(
    model="/home/me/llama", data=("/home/me/mine.jsonl",), output="/home/me/run", lora_rank=7
)
LOSSES = [{"step": step, "eval_loss": loss} for step, loss in ((0, 2.0), (5, 1.5), (9, 1.25))]
MINE = {"name": "/home/me/mine.jsonl", "revision": None, "rows_read": 1200, "kept": 1150}
TUNE = {"name": "mlabonne/FineTome-100k", "revision": "ef" * 20, "rows_read": 9, "kept": 9}
NASTY = (
    "`<i></code></pre><img src=x onerror=alert(1)>\n````\n# Heading\n---\nlicense: mit\n"
    "[a](b) | c `d`"
)


def card(base: BaseModel = HUB, **facts: Any) -> str:
    given = {"flags": dataclasses.asdict(CONFIG), "sources": [MINE], "records": LOSSES} | facts
    return model_card(CardFacts(base, **given))


def metadata(text: str) -> dict[str, Any]:
    assert text.startswith("---\n") and not front_matter_errors(text)
    data = yaml.safe_load(text.split("---\n")[1])
    assert ModelCard(text).data.to_dict().items() <= data.items()
    return data


def test_the_losses_are_the_first_and_the_last():
    """Seen to fail when the second evaluation was taken for the last."""
    assert "2.0000 nats per target token before, 1.2500 after" in card()
    assert "held-out" not in card(records=[])


def test_the_hub_is_told_the_base_only_if_it_has_it():
    data = metadata(card())
    assert data["base_model"] == HUB.name and data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft" and data["pipeline_tag"] == "text-generation"
    assert "at revision `abab" in card() and "cdcd" in card()
    assert "base_model" not in metadata(card(LOCAL))
    assert "base_model" not in metadata(card(BaseModel()))


def test_a_merged_model_is_a_model_and_no_adapter():
    text = card(is_merged=True, repo="me/my-model")
    data = metadata(text)
    assert data["library_name"] == "transformers" and data["base_model_relation"] == "finetune"
    assert "vllm serve me/my-model" in text and "peft" not in text.lower()
    assert 'python chat.py ask "Hello!" --model me/my-model\n' in text


def test_data_sets_stand_there_with_what_is_known_of_them():
    """Seen to fail when a local file was listed as a data set of the Hub."""
    held_out = TUNE | {"license": "cc-by-4.0"}
    text = card(sources=[MINE, held_out], base_license="llama3.2")
    assert metadata(text)["datasets"] == [TUNE["name"]] and metadata(text)["license"] == "llama3.2"
    assert "| `mine.jsonl` | local | training | 1,150 | 50 |  |" in text
    line = f"| `{TUNE['name']}` | `{TUNE['revision']}` | evaluation | 9 | 0 | `cc-by-4.0` |"
    assert line in text
    assert "Licence of the base model: `llama3.2`" in text
    assert "Licence of the base model: states none" in card(base_license="")
    assert "icence of" not in card()
    assert "license" not in metadata(card()) and "is not known" in card(sources=[])


def test_settings_stand_there_and_nothing_that_could_be_a_path():
    """Whichever flag the user's folder is in. Seen to fail when all flags were listed."""
    text = card()
    assert "| `--lora-rank` | 7 |" in text and "`mine.jsonl`" in text and "/home/me" not in text
    free = [
        name
        for name, hint in typing.get_type_hints(TrainConfig).items()
        if str in (hint, *typing.get_args(hint)) and name not in CHOICES
    ]
    assert {"model", "data", "output", "backup", "eval_data"} <= {*free}
    flags = dataclasses.asdict(CONFIG)
    for name in set(free) - {"lora_targets"}:
        is_list = isinstance(flags[name], tuple)
        flags[name] = ("/secret/place",) if is_list else "/secret/place"
    assert "/secret" not in card(flags=flags)
    shown = {name for name in flags if f"`--{name.replace('_', '-')}`" in text}
    others = {field.name for field in dataclasses.fields(TrainConfig)} - {*free}
    assert shown >= others - {"demo", "resume"}


@pytest.mark.parametrize("merged", [False, True])
def test_what_was_answered_is_no_markup(merged: bool):
    """In questions, answers and names.

    Seen to fail with a fence of three backticks around an answer with four, with one backtick
    around a name with one, and when a folder's name stood in a heading as it was.
    """
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    records = [{"step": 9, "prompt": NASTY, "sample": f"{NASTY}\r\n`````\x00\u202e"}]
    sources = [MINE | {"name": f"/home/me/{NASTY.replace('/', '')}"}]
    nasty = BaseModel(NASTY.replace("/", ""), None, "ab")
    text = card(nasty, records=records, sources=sources, is_merged=merged, repo="me/it")
    assert metadata(text).keys() == {"library_name", "pipeline_tag", "tags"}
    tokens = markdown.parse(text.split("---\n", 2)[2])
    inline = [child for token in tokens for child in token.children or []]
    assert not [t for t in [*tokens, *inline] if t.type.startswith(("html", "link", "image"))]
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert not [heading for heading in headings if heading == "Heading"]
    fences = [token.content for token in tokens if token.type == "fence"]
    assert f"{NASTY}\n" in fences and f"{NASTY}\n`````\ufffd\ufffd\n" in fences
    rows = [t for t in tokens if t.type == "tr_open"]
    cells = [t for t in tokens if t.type in ("td_open", "th_open")]
    settings = sum(line.startswith("| `--") for line in text.splitlines())
    assert len(rows) == 2 + 1 + settings and len(cells) == 2 * 6 + 2 * (1 + settings)


def test_the_answers_are_those_after_the_last_step():
    records = [{"step": step, "prompt": "Who?", "sample": f"after {step}"} for step in (0, 5, 9)]
    text = card(records=records)
    assert "## Answers after step 9" in text and "after 9\n" in text and "after 5\n" not in text


def test_every_program_is_told_how_to_use_an_adapter():
    """Seen to fail when the rank itself was given to vLLM, which knows some numbers only."""
    text = card(repo="me/it", picture="loss.png")
    pinned = f"{HUB.name}@{HUB.revision}"
    assert f'chat.py ask "Hello!" --model {pinned} --adapter ./it' in text
    assert 'PeftModel.from_pretrained(model, "me/it")' in text
    assert "--enable-lora --max-lora-rank 8 --lora-modules it=me/it" in text
    assert f"export.py ./it --model {pinned} --gguf it.gguf" in text
    assert text.count("hf download me/it --local-dir it\n") == 2
    assert "![The loss during training](loss.png)" in text
    local = card(LOCAL)
    assert "BASE stands for the folder of `llama`" in local and "hf download" not in local
    assert "--model demo" in card(BaseModel("demo"))
