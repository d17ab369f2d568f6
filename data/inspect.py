"""What training would see of a data set: counts, lengths, and rows with their targets marked.

python -m data.inspect demo --rows 1,5
python -m data.inspect mlabonne/FineTome-100k --model unsloth/Llama-3.2-1B-Instruct --ids
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from data.chat_format import ChatFormat, chat_format_of
from data.command_line import argument, option, parse, run_command
from data.conversations import NOTHING_LEFT, conversation_of
from data.dataset import Conversations, targets_of, tokenize
from data.hub import fetch_model, model_files
from data.report import DataReport, check_report, check_share, flaws_table
from data.rows import Row, read_rows
from data.snapshot import hub_snapshot
from data.sources import Source, find_source
from data.tokenizer import Tokenizer

PROGRAM = "data.inspect"
DEFAULT_MODEL = "unsloth/Llama-3.2-1B-Instruct"
BAR = 50  # characters of the histogram's longest bar
MOST_OF_A_FLAWED_ROW = 500  # characters
GREEN, DIM, RESET = "\033[32m", "\033[2m", "\033[0m"


@dataclass(frozen=True)
class InspectConfig:
    """What to look at; each field is a flag of `python -m data.inspect`."""

    data: str = argument("Hub dataset id, .parquet/.jsonl/.json file, folder of those, or demo")
    model: str | None = option(
        None,
        f"whose tokenizer and chat format (default: {DEFAULT_MODEL}, and demo for the data demo)",
    )
    split: str = option("train", "train, validation or test")
    rows: str | None = option(None, "numbers of rows to show as tokens, such as 1,5; first is 1")
    ids: bool = option(False, "show these rows one token a line, with its id")
    max_length: int = option(2048, "tokens of a conversation; longer ones are cut at the end")
    train_on: str = option("assistant", "which tokens are targets: assistant, all or last")
    strict_data: bool = option(False, "any row that cannot be learnt from is an error")
    max_dropped: float = option(0.1, "largest share of rows that may be dropped, from 0 to 1")
    color: bool = option(False, "use colours even where the output is not a terminal")

    def __post_init__(self) -> None:
        check_share(self.max_dropped)


def inspect(config: InspectConfig) -> None:
    """Prints all that was asked for, and then refuses data that training would refuse."""
    numbers = row_numbers(config.rows)
    source = find_source(config.data, config.split)
    model = config.model or ("demo" if config.data == "demo" else DEFAULT_MODEL)
    folder = tokenizer_folder(model)
    tokenizer = Tokenizer.from_folder(folder)
    try:
        chat_format = chat_format_of(tokenizer)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    conversations, report = tokenize(source, chat_format, config.max_length, config.train_on)
    print(summary(source, report, conversations, f"{model} ({chat_format.name})"))
    for part in (flaws_table([report]), histogram(report)):
        if part:
            print("\n" + part)

    has_color = config.color or sys.stdout.isatty()
    for number, row in rows_by_number(source, numbers):
        print(f"\n--- row {number}")
        print(shown_row(row, chat_format, config, has_color))
    if numbers and max(numbers) > report.rows_read:
        raise ValueError(f"there is no row {max(numbers)}: {source.name} has {report.rows_read}")
    check_report([report], config.strict_data, config.max_dropped)


def row_numbers(text: str | None) -> list[int]:
    """The numbers that --rows lists."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--rows is {text!r}; give numbers from 1 on, with commas between them")
    return [int(part) for part in parts]


def tokenizer_folder(model: str) -> Path:
    """The folder of a model, of which the Hub is asked for everything but the weights."""
    if model == "demo" or os.path.isdir(os.path.expanduser(model)):
        return fetch_model(model).path

    def choose(names: Collection[str], read: Callable[[str], Path]) -> list[str]:
        return [name for name in model_files(names, read) if ".safetensors" not in name]

    return hub_snapshot(model, "model", choose).path


def summary(source: Source, report: DataReport, kept: Conversations, model: str) -> str:
    """The counts, a line each."""
    revision = f" at {report.revision}" if report.revision else ""
    files = f"{len(source.files)} file{'s' * (len(source.files) != 1)}"
    duplicates = report.kept - len(np.unique(kept.digests))
    lines = {
        "data": f"{report.name}{revision}, {files}",
        "model": model,
        "rows": f"{report.rows_read:,} read, {report.kept:,} kept, {report.rows_dropped:,} dropped",
        "duplicates": f"{duplicates:,} of the rows kept say what an earlier one does",
        "cut": f"{report.cut:,} of the rows kept lost their end",
        "tokens": f"{report.tokens:,}",
        "targets": f"{report.target_tokens:,} tokens",
    }
    if report.kept:
        mean, longest = report.tokens / report.kept, kept.lengths.max()
        lines["tokens"] += f", {mean:,.0f} a conversation, {longest:,} in the longest"
        lines["targets"] += f", {report.target_tokens / report.tokens:.0%} of all"
    return "\n".join(f"{name:<12}{line}" for name, line in lines.items())


def histogram(report: DataReport) -> str:
    """Bars of how many conversations have which length; empty if there are none."""
    edges, counts = report.histogram["upper_edges"], report.histogram["counts"]
    if not counts:
        return ""
    lines = ["tokens          conversations"]
    for before, edge, count in zip([0, *edges], edges, counts, strict=False):
        bar = "#" * -(-count * BAR // max(counts))
        lines.append(f"{before + 1:>6} to {edge:<6}{count:>9,}  {bar}".rstrip())
    return "\n".join(lines)


def rows_by_number(source: Source, numbers: Collection[int]) -> Iterator[tuple[int, Row | None]]:
    """Yields the rows of those numbers, reading no further than the last of them."""
    batches = itertools.chain.from_iterable(map(read_rows, source.files))
    rows = enumerate(itertools.chain.from_iterable(batches), start=1)
    for number, row in itertools.islice(rows, max(numbers, default=0)):
        if number in numbers:
            yield number, row


def shown_row(
    row: Row | None, chat_format: ChatFormat, config: InspectConfig, has_color: bool
) -> str:
    """A row as training reads it, or why it does not, with what the row holds."""
    try:
        rendered = chat_format.render(conversation_of(row))
    except ValueError as flaw:
        return f"dropped: {flaw}\n{json.dumps(row, default=str)[:MOST_OF_A_FLAWED_ROW]}"
    ids = rendered.ids[: config.max_length]
    is_target = targets_of(rendered, config.train_on)[: config.max_length].tolist()
    was_cut = len(rendered.ids) - len(ids)
    notes = [
        f"{len(ids)} tokens, {sum(is_target)} targets" + (f", {was_cut} cut off" * bool(was_cut))
    ]
    if not any(is_target):
        notes.append(f"dropped: {NOTHING_LEFT}")
    show = token_lines if config.ids else running_text
    return "\n".join([*notes, show(ids, is_target, chat_format.tokenizer, has_color)])


def running_text(
    ids: list[int], is_target: list[bool], tokenizer: Tokenizer, has_color: bool
) -> str:
    """The text of tokens: targets green or between « and », control tokens dim."""
    control = set(tokenizer.control_ids.values())
    parts = []
    for targeted, group in groupby(zip(ids, is_target, strict=True), lambda pair: pair[1]):
        text = ""
        for is_control, tokens in groupby(group, lambda pair: pair[0] in control):
            spelt = b"".join(tokenizer.bytes_of(token) for token, _ in tokens)
            text += colored(visible(spelt), targeted, is_control) if has_color else visible(spelt)
        parts.append(f"«{text}»" if targeted and not has_color else text)
    return "".join(parts)


def token_lines(
    ids: list[int], is_target: list[bool], tokenizer: Tokenizer, has_color: bool
) -> str:
    """One token a line: its place, its id, * if it is a target, and what it spells."""
    control = set(tokenizer.control_ids.values())
    lines = []
    for place, (token, targeted) in enumerate(zip(ids, is_target, strict=True)):
        spelt = visible(tokenizer.bytes_of(token)).replace("\n", "\\n")
        kind = "control " if token in control else ""
        line = f"{place:>6} {token:>7} {'*' if targeted else ' '} {kind}{spelt}"
        lines.append(colored(line, targeted, token in control) if has_color else line)
    return "\n".join(lines)


def colored(text: str, is_target: bool, is_control: bool) -> str:
    """Text in the terminal's colours."""
    codes = GREEN * is_target + DIM * is_control
    return codes + text + RESET if codes else text


def visible(spelt: bytes) -> str:
    """Text whose control characters a terminal would obey, as escapes; line breaks stay."""
    text = spelt.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without emoji shows ? instead
        sys.stdout.reconfigure(errors="replace")
    description = "Shows what training would see of a data set."
    config = parse(InspectConfig, arguments, f"python -m {PROGRAM}", description)
    return run_command(PROGRAM, lambda: inspect(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
