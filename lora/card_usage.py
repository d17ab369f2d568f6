"""The part of a card that says how to use what it describes, and text that stays text in it."""

from __future__ import annotations

import re

from lora.config import BaseModel

# What vLLM can be told to make room for.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def how_to_use(
    base: BaseModel, base_on_hub: str | None, repo: str | None, is_merged: bool, rank: int | None
) -> str:
    """The commands for four programs.

    Args:
        base: the base model.
        base_on_hub: its Hub id, if it has one.
        repo: the Hub id of what is described; None for files in a local folder.
        is_merged: whether that is a model of its own.
        rank: the adapter's.
    """
    folder = repo.rpartition("/")[2] if repo else "FOLDER"
    fetch = f"hf download {repo} --local-dir {folder}\n" if repo else ""
    notes = [] if repo else ["FOLDER stands for the folder that this file is in."]
    if is_merged:
        sections = merged_sections(repo or "FOLDER", folder, fetch)
    else:
        name = base_on_hub or ("demo" if base.name == "demo" else "BASE")
        if name == "BASE":
            notes.append(f"BASE stands for the folder of {code(base.name or 'the base model')}.")
        sections = adapter_sections(base, name, repo or "FOLDER", folder, fetch, rank)
    blocks = [
        f"{title}:\n\n```{language}\n{text}\n```" for title, (language, text) in sections.items()
    ]
    return "\n\n".join(["## How to use it", *([" ".join(notes)] if notes else []), *blocks])


def adapter_sections(
    base: BaseModel, name: str, place: str, folder: str, fetch: str, rank: int | None
) -> dict[str, tuple[str, str]]:
    """For an adapter beside its base model, by the program: language and text."""
    pinned = f"{name}@{base.revision}" if base.revision else name
    name = "model/demo" if name == "demo" else name  # a folder beside these programs
    revision = f', revision="{base.revision}"' if base.revision else ""
    serve = f"vllm serve {name}" + (f" --revision {base.revision}" if base.revision else "")
    room = next((r for r in VLLM_RANKS if rank and r >= rank), VLLM_RANKS[-1])
    return {
        "With the program that trained it": (
            "bash",
            f'{fetch}python chat.py ask "Hello!" --model {pinned} --adapter ./{folder}',
        ),
        "In PEFT": (
            "python",
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{name}"{revision})\n'
            f'model = AutoModelForCausalLM.from_pretrained("{name}"{revision})\n'
            f'model = PeftModel.from_pretrained(model, "{place}")',
        ),
        "In vLLM": (
            "bash",
            f"{serve} --enable-lora --max-lora-rank {room} --lora-modules {folder}={place}",
        ),
        "In llama.cpp": (
            "bash",
            f"{fetch}python export.py ./{folder} --model {pinned} --gguf {folder}.gguf\n"
            f"llama-cli -m {folder}.gguf",
        ),
    }


def merged_sections(place: str, folder: str, fetch: str) -> dict[str, tuple[str, str]]:
    """The same for a merged model, which needs no other."""
    local = place if "/" in place else f"./{place}"
    return {
        "With the program that trained it": (
            "bash",
            f'python chat.py ask "Hello!" --model {local}',
        ),
        "In transformers": (
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{place}")',
        ),
        "In vLLM": ("bash", f"vllm serve {place}"),
        "In llama.cpp, whose own converter makes the GGUF file of it": (
            "bash",
            f"{fetch}python llama.cpp/convert_hf_to_gguf.py ./{folder} --outfile {folder}.gguf\n"
            f"llama-cli -m {folder}.gguf",
        ),
    }


def code(text: str) -> str:
    """Text within a line that is no markup, also in a table."""
    text = " ".join(printable(text).split()).replace("|", "\\|")
    ticks = "`" * (longest_run(text) + 1)
    blank = " " if "`" in text else ""
    return f"{ticks}{blank}{text}{blank}{ticks}" if text else "(empty)"


def code_block(text: str) -> str:
    """Text of several lines that is no markup: the fence is longer than any in it."""
    fence = "`" * max(3, longest_run(text) + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def longest_run(text: str) -> int:
    """How many backticks stand together, at most."""
    return max(map(len, re.findall("`+", text)), default=0)


def printable(text: str) -> str:
    """The text in lines that end in a line feed, without control and direction characters."""
    lines = "\n".join(text.splitlines())
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in lines
    )
