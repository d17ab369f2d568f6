"""A training step of litgpt, torchtune or TRL, taken whenever a line arrives on stdin.

Run by benchmarks/trainers.py with the Python of a virtual environment that has the trainer, but not
what this project needs; so nothing of this project is imported here. Each is set up as its own
fine-tuning recipe for one device does it. A step answers with its loss, and wall and CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
Tensors = dict[str, Tensor]


def litgpt(config: dict, weights: Tensors, a: Tensors, work: Tensors, lr: float) -> Callable:
    """As litgpt/finetune/lora.py does it, in bf16-true, the head in chunks of 128 tokens."""
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy

    wanted = dict.fromkeys(("lora_query", "lora_key", "lora_value", "lora_projection"), True)
    shape = Config(
        name="random",
        block_size=8192,
        vocab_size=config["vocab_size"],
        padded_vocab_size=config["vocab_size"],
        n_layer=config["num_hidden_layers"],
        n_head=config["num_attention_heads"],
        n_query_groups=config["num_key_value_heads"],
        n_embd=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        rope_base=config["rope_theta"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        lora_r=config["rank"],
        lora_alpha=config["alpha"],
        lora_dropout=0.0,
        **wanted,
    )
    model = GPT(shape).bfloat16()
    converted: Tensors = {}
    copy_weights_hf_llama(shape, {}, converted, weights)
    model.load_state_dict(converted, strict=False)
    model.lm_head.linear.weight = model.transformer.wte.weight
    for number, block in enumerate(model.transformer.h):
        of_layer = [a[f"{number}.{name}"] for name in ATTENTION]
        block.attn.qkv.lora_A.data = torch.cat(of_layer[:3]).bfloat16()
        block.attn.proj.lora_A.data = of_layer[3].bfloat16()
    mark_only_lora_as_trainable(model)
    model.max_seq_length = work["tokens"].shape[1]

    def loss() -> Tensor:
        logits = model(work["tokens"], lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, work["labels"][..., 1:])

    return step_of(model, loss, lr)


def torchtune(config: dict, weights: Tensors, a: Tensors, work: Tensors, lr: float) -> Callable:
    """As its lora_finetune_single_device recipe does it, in bf16."""
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3_2._component_builders import lora_llama3_2
    from torchtune.modules import RotaryPositionalEmbeddings
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    names = ("q_proj", "k_proj", "v_proj", "output_proj")
    model = lora_llama3_2(
        list(names),
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=key_heads,
        embed_dim=config["hidden_size"],
        max_seq_len=8192,
        intermediate_dim=config["intermediate_size"],
        lora_rank=config["rank"],
        lora_alpha=config["alpha"],
        lora_dropout=0.0,
    ).bfloat16()
    converted = hf_to_tune(weights, heads, key_heads, config["hidden_size"], config["head_dim"])
    model.load_state_dict(converted, strict=False)
    rope = RotaryPositionalEmbeddings(config["head_dim"], 8192, config["rope_theta"])
    for number, layer in enumerate(model.layers):
        layer.attn.pos_embeddings = rope
        for theirs, ours in zip(names, ATTENTION, strict=True):
            getattr(layer.attn, theirs).lora_a.weight.data = a[f"{number}.{ours}"].bfloat16()
    set_trainable_params(model, get_adapter_params(model))
    chunked = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(chunked.num_output_chunks)
    nothing = torch.full_like(work["labels"][:, :1], -100)
    targets = torch.hstack((work["labels"][:, 1:], nothing))
    return step_of(model, lambda: chunked(model(work["tokens"]), targets), lr)


def step_of(model: nn.Module, loss: Callable[[], Tensor], lr: float) -> Callable[[], None]:
    """Takes a step for every line."""
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)

    def steps() -> None:
        tell({"ready": sum(p.numel() for p in weights)})
        while sys.stdin.readline():
            watch = Watch()
            value = loss()
            value.backward()
            adam.step()
            adam.zero_grad()
            tell({"loss": value.item()} | watch.seconds())

    return steps


def trl(config: dict, weights: Tensors, a: Tensors, work: Tensors, lr: float) -> Callable:
    """Its SFTTrainer with its defaults, but for the batch and what makes losses comparable."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="a", unk_token="b", eos_token="c"
    )
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    shape = transformers.LlamaConfig(**config, rope_parameters=rope, tie_word_embeddings=True)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(shape)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(shape)
    lengths = work["lengths"].tolist()
    rows = [
        {"input_ids": t[:n].tolist(), "completion_mask": (y[:n] >= 0).int().tolist()}
        for t, y, n in zip(work["tokens"], work["labels"], lengths, strict=True)
    ]
    settings = SFTConfig(
        output_dir=config["folder"],
        per_device_train_batch_size=len(rows),
        max_steps=1000,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        max_length=max(lengths),
        completion_only_loss=True,  # or it would not look at the masks of rows that are ids
        learning_rate=lr,
        lr_scheduler_type="constant",
        disable_tqdm=True,
    )
    adapter = LoraConfig(
        r=config["rank"], lora_alpha=config["alpha"], target_modules=list(ATTENTION)
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    for name, weight in trainer.model.named_parameters():
        if "lora_A" in name:
            layer, _, projection = name.split(".layers.")[1].split(".")[:3]
            weight.data = a[f"{layer}.{projection}"].to(weight.dtype)
    trainer.add_callback(told_when(transformers.TrainerCallback))
    return trainer.train


def told_when(base: type) -> Any:
    """A callback that takes a step for every line, and answers when it is logged."""

    class WhenTold(base):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            if not hasattr(self, "watch"):
                tell({"ready": sum(p.numel() for p in more["model"].parameters())})
            if not sys.stdin.readline():
                sys.exit()
            self.watch = Watch()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            self.took = self.watch.seconds()

        def on_log(self, *arguments: Any, logs: dict, **more: Any) -> None:
            if "loss" in logs:
                tell({"loss": logs["loss"]} | self.took)

    return WhenTold()


class Watch:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        wall, cpu = self.started
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def tell(answer: dict[str, Any]) -> None:
    """One line of JSON for the program that started this one."""
    print("@" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    trainer, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    settings = json.loads((folder / "config.json").read_text()) | {"folder": str(folder / "out")}
    rate = settings.pop("lr")
    files = (load_file(folder / f"{name}.safetensors") for name in ("model", "a", "work"))
    {"litgpt": litgpt, "torchtune": torchtune, "trl": trl}[trainer](settings, *files, rate)()
