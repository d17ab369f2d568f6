"""TRL's SFTTrainer on conversations: their preparation alone, or a whole training.

    PYTHON benchmarks/trl_sft.py prepare|train SETTINGS.json

Run by benchmarks/tokenising.py and benchmarks/whole_command.py with the Python of a virtual
environment that has trl, but not what this project needs; so nothing of this project is imported.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

datasets.disable_caching()


def tokenizer_of(settings: dict) -> PreTrainedTokenizerBase:
    """The model's, with a template that marks what an assistant writes, as TRL asks for."""
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.chat_template = settings["template"]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token = settings["pad"]
    return tokenizer


def prepare(settings: dict) -> None:
    """Writes down how long TRL's preparation takes, and what comes out of it."""
    trainer_type = timed(SFTTrainer)
    tiny = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    trainer = trainer_type(
        model=LlamaForCausalLM(tiny),
        args=SFTConfig(
            output_dir=settings["output"],
            max_length=settings["max_length"],
            assistant_only_loss=True,
            dataset_num_proc=settings["processes"],
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_parquet(settings["data"]),
        processing_class=tokenizer_of(settings),
    )
    rows = trainer.train_dataset.with_format("numpy")
    ids = [row.astype("<u4") for row in rows["input_ids"][:]]
    labels = [row for row in rows["labels"][:]]
    np.savez(
        settings["result"],
        lengths=np.array([len(row) for row in ids]),
        ids=np.concatenate(ids),
        targets=np.concatenate(labels) >= 0,
    )
    print(json.dumps({"seconds": trainer_type.seconds}))


def timed(base: type) -> type:
    """The trainer, which remembers how long it prepared its data."""

    class Timed(base):
        seconds = 0.0

        def _prepare_dataset(self, *arguments, **more):
            started = time.perf_counter()
            prepared = super()._prepare_dataset(*arguments, **more)
            type(self).seconds += time.perf_counter() - started
            return prepared

    return Timed


def train(settings: dict) -> None:
    """From conversations to an adapter, evaluated before and after."""
    torch.manual_seed(settings["seed"])
    trainer = SFTTrainer(
        model=settings["model"],
        args=SFTConfig(
            output_dir=settings["output"],
            model_init_kwargs={"dtype": settings["dtype"]},
            max_length=settings["max_length"],
            max_steps=settings["steps"],
            per_device_train_batch_size=settings["batch_size"],
            per_device_eval_batch_size=settings["batch_size"],
            learning_rate=settings["lr"],
            lr_scheduler_type="cosine",
            warmup_steps=settings["warmup_steps"],
            max_grad_norm=settings["grad_clip"],
            weight_decay=0.0,
            gradient_checkpointing=settings["recompute"],
            train_sampling_strategy="sequential",
            assistant_only_loss=True,
            eval_strategy="steps",
            eval_steps=settings["steps"],
            eval_on_start=True,
            logging_steps=1,
            save_steps=settings["steps"],
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            seed=settings["seed"],
        ),
        train_dataset=Dataset.from_parquet(settings["data"]),
        eval_dataset=Dataset.from_parquet(settings["held_out"]),
        processing_class=tokenizer_of(settings),
        peft_config=LoraConfig(
            r=settings["rank"],
            lora_alpha=settings["alpha"],
            lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.save_model(settings["adapter"])
    Path(settings["result"]).write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    work = {"prepare": prepare, "train": train}[sys.argv[1]]
    work(json.loads(Path(sys.argv[2]).read_text()))
