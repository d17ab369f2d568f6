"""The targets of real conversations, against the text that the Hub's template makes of them.

With the real tokenizer of Llama 3.2; needs ASSETS and transformers. About 15 seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_templates import Pair, load_pair

from data.dataset import tokenize
from data.sources import find_source

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@pytest.fixture(scope="module")
def llama3(assets: Path) -> Pair:
    return load_pair(assets / "llama3-tokenizer")


def mask_by_the_templates_text(pair: Pair, turns: list[dict[str, str]]) -> tuple[list, list]:
    """Ids and targets from the Hub's template and its text: what stands behind a header."""
    ids, mask = pair.hub_ids(turns), []
    text = pair.theirs.apply_chat_template(turns, tokenize=False, date_string="26 Jul 2024")
    encoding = pair.theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoding["input_ids"] == ids
    header, end = "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"
    inside = np.zeros(len(text) + 1, bool)
    place = text.find(header)
    while place >= 0:
        stop = text.find(end, place) + len(end)
        inside[place + len(header) : stop] = True
        place = text.find(header, stop)
    for start, _ in encoding["offset_mapping"]:
        mask.append(bool(inside[start]))
    return ids, mask


def test_targets_of_real_conversations_are_those_of_the_templates_text(
    assets: Path, llama3: Pair, tmp_path: Path
):
    """1,000 conversations with the real tokenizer of Llama 3.2, token by token."""
    source = find_source(str(assets / "data"))
    kept, report = tokenize(source, llama3.ours, 100_000, "assistant", tmp_path / "cache")
    dropped = {number for entry in report.dropped.values() for number in entry["first"]}
    assert len(dropped) == report.rows_dropped
    table = pq.read_table(source.files[0]).slice(0, 1000 + len(dropped))
    rows = [row for number, row in enumerate(table.to_pylist(), 1) if number not in dropped]
    assert len(rows) >= 1000
    for index, row in enumerate(rows):
        turns = [
            {"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]
        ]
        ids, mask = mask_by_the_templates_text(llama3, turns)
        assert kept[index].tokens.tolist() == ids
        assert kept[index].is_target.tolist() == mask
