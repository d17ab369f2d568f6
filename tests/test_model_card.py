"""What the card of an adapter says, and what it keeps to itself."""

from __future__ import annotations

import dataclasses

from lora.config import BaseModel
from lora.model_card import model_card
from lora.train_config import TrainConfig

HUB = BaseModel("unsloth/Llama-3.2-1B-Instruct", "ab" * 20, "cd" * 32)
CONFIG = TrainConfig(
    model="/home/me/llama", data=("/home/me/mine.jsonl",), output="/home/me/run", lora_rank=7
)


def card(base: BaseModel = HUB, losses: tuple[float, ...] = (2.0, 1.5, 1.25)) -> str:
    return model_card(base, ["mine.jsonl"], dataclasses.asdict(CONFIG), losses)


def test_the_losses_are_the_first_and_the_last():
    """Seen to fail when the second evaluation was taken for the last."""
    assert "2.0000 nats per target token before, 1.2500 after" in card()
    assert "held-out" not in card(losses=())


def test_the_hub_is_told_the_base_only_if_it_has_it():
    assert 'base_model: "unsloth/Llama-3.2-1B-Instruct"' in card()
    assert "at revision `abab" in card() and "cdcd" in card()
    assert "base_model" not in card(BaseModel("llama", None, "cd" * 32))


def test_settings_stand_there_and_paths_do_not():
    """Seen to fail when all flags were listed."""
    assert "| `--lora-rank` | 7 |" in card() and "`mine.jsonl`" in card()
    assert "/home/me" not in card()
