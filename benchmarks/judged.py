"""What the two sides of benchmarks/whole_command.py learn from, and what they have learnt.

python -m benchmarks.judged divide MODEL FOLDER COUNT
python -m benchmarks.judged losses MODEL FOLDER ADAPTER...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from data.batches import MicroBatch, Mixture, conversations_of_step
from data.chat_format import ChatFormat, chat_format_of
from data.dataset import Conversations, tokenize
from data.sources import find_source
from data.tokenizer import Tokenizer
from lora.adapter import load_adapter
from lora.inject import remove_lora
from lora.train_config import TrainConfig
from model.llama import Llama
from model.weights import load_model
from train import summed_loss

BATCH = 8


def divide(model: str, folder: str, count: str) -> None:
    """Writes rows.parquet as train, test and in_order, the first in the order of our steps."""
    place = Path(folder)
    rows = pq.read_table(place / "rows.parquet")
    learnt = rows.slice(int(count))
    pq.write_table(rows.slice(0, int(count)), place / "test.parquet")
    pq.write_table(learnt, place / "train.parquet")
    mixture, seed = Mixture((len(learnt),)), TrainConfig().seed
    steps = range(len(learnt) // BATCH + 1)
    order = [n for step in steps for n in conversations_of_step(mixture, BATCH, seed, step)]
    pq.write_table(learnt.take(order[: len(learnt)]), place / "in_order.parquet")


def losses(model: str, folder: str, *adapters: str) -> None:
    """Prints the held-out loss of the model alone, and with each adapter."""
    place = Path(folder)
    chat_format = chat_format_of(Tokenizer.from_folder(Path(model)))
    held_out = conversations(place / "test.parquet", chat_format, place / "judge")
    llama = load_model(Path(model), torch.float32)
    found = [loss_of(llama, held_out)]
    for adapter in adapters:
        load_adapter(llama, Path(adapter))
        found.append(loss_of(llama, held_out))
        remove_lora(llama)
    print(json.dumps(found))


def conversations(file: Path, chat_format: ChatFormat, cache: Path) -> Conversations:
    """Those of a file, as tokens."""
    return tokenize(find_source(str(file)), chat_format, 2048, "assistant", cache)[0]


@torch.no_grad()
def loss_of(llama: Llama, held_out: Conversations) -> float:
    """Mean over all target tokens, in nats."""
    total, count = 0.0, 0
    for example in held_out:
        batch = MicroBatch.of([example])
        total += summed_loss(llama, batch).item()
        count += len(batch.targets)
    return total / count


if __name__ == "__main__":
    {"divide": divide, "losses": losses}[sys.argv[1]](*sys.argv[2:])
