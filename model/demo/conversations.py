"""Chats to fine-tune the demo on: `python -m model.demo.conversations` writes data/demo/.

The schema is that of mlabonne/FineTome-100k. The test split asks only what the training split never
does, of people and users with names that it never mentions; only what refers to the talk
itself ("What is my name?", "And what does she do?") is asked in both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from model.demo.talks import Talker

TRAINING_ROWS, TEST_ROWS = 5000, 400
SOURCE = "little-world"
SCHEMA = pa.schema(
    {
        "conversations": pa.list_(pa.struct({"from": pa.string(), "value": pa.string()})),
        "source": pa.string(),
        "score": pa.float64(),
    }
)
# What the Hub's viewer and `datasets` read the types from.
FEATURES = {
    "conversations": [
        {
            "from": {"dtype": "string", "_type": "Value"},
            "value": {"dtype": "string", "_type": "Value"},
        }
    ],
    "source": {"dtype": "string", "_type": "Value"},
    "score": {"dtype": "float64", "_type": "Value"},
}


def main() -> None:
    """Writes both splits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folder = Path(__file__).parents[2] / "data" / "demo"
    parser.add_argument("--output", type=Path, default=folder)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", TRAINING_ROWS), ("test", TEST_ROWS)):
        table = pa.Table.from_pylist(write_split(split, rows), schema=SCHEMA)
        metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
        path = args.output / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def write_split(split: str, rows: int) -> list[dict]:
    """The rows of "train" or "test": a pure function of the two."""
    talker = Talker(Random(f"conversations {split}"), held_out=split == "test")
    return [conversation(talker) for _ in tqdm(range(rows), desc=split, unit="row")]


def conversation(talker: Talker) -> dict:
    """One row: a talk with its sides called human and gpt, and its opening system."""
    talk = talker.talk()
    messages = [{"from": "system", "value": talk.opening}] if talk.opening else []
    for turn in talk.turns:
        messages.append({"from": "human", "value": turn.ask})
        messages.append({"from": "gpt", "value": turn.reply})
    return {"conversations": messages, "source": SOURCE, "score": 5.0}


if __name__ == "__main__":
    main()
