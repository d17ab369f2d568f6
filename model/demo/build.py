"""Pre-trains the demo's base model from scratch: `python -m model.demo.build`.

This is how a base model comes about. A tokenizer is trained on sample text. Then the model, which
starts as noise, reads one batch of documents after the other and is changed a little each time so
that it would have predicted every next token better. Nobody tells it what a question is.

The first steps are an exercise in copying: lists said twice, of which only the second time counts.
To repeat what stood before takes two layers that work together (Olsson et al., In-context Learning
and Induction Heads, arXiv:2209.11895). In mixed text that skill comes late, because most of what
there is to copy looks like chance; here it comes within minutes, and all else builds on it. A few
such lists stay in every later step, or the skill would fade for names that look like no other.

Step `s` reads the texts with the numbers from `s * TEXTS` on, so none comes twice and the same
number of threads gives the same weights again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from model.attention import Packed
from model.config import LlamaConfig
from model.demo.names import FIRST_NAMES, invented_name, is_held_out
from model.demo.stories import document, exercise
from model.demo.vocabulary import BOS, EOS, save_tokenizer, train_tokenizer
from model.llama import Attention, Llama

STEPS = 4000
EXERCISE_STEPS = 600  # the first of them read exercises only
TEXTS = 18  # per step, about 2000 tokens
LATER_EXERCISES = 5  # of them, after the first steps
EXERCISE_LR = 1e-3
WARMUP_STEPS = 60
PEAK_LR = 1.5e-3  # of the documents; the learning rate falls to END_LR times this
END_LR = 0.03
EMBEDDING_LR = 0.5  # times the others': most rows are read seldom, and AdamW's steps do not shrink
SAMPLES = 12_000  # documents, and as many names, that the tokenizer is trained on
SEED = 3407

# The shape of Llama 3.2, much smaller.
ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.03,
    "intermediate_size": 640,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 4.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 512,
        "rope_type": "llama3",
    },
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_cache": True,
}


def main() -> None:
    """Trains the tokenizer and the model and writes the folder that a Hub model has."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    sample = (document("sample", number) for number in range(SAMPLES))
    rng = Random("names")
    real, invented = FIRST_NAMES, [invented_name(rng) for _ in range(SAMPLES)]
    known = [[name for name in names if not is_held_out(name)] for names in (real, invented)]
    tokenizer = train_tokenizer(sample, *known)
    save_tokenizer(tokenizer, args.output)
    save_configuration(tokenizer, args.output)

    model = initial_model(LlamaConfig.from_folder(args.output))
    pretrain(model, tokenizer, args.steps)
    weights = {name: w.to(torch.bfloat16) for name, w in model.state_dict().items()}
    del weights["lm_head.weight"]  # tied: it is the embedding
    save_file(weights, args.output / "model.safetensors", metadata={"format": "pt"})


def save_configuration(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes config.json and generation_config.json."""
    ends = [tokenizer.token_to_id(name) for name in (EOS, "<|eom_id|>", "<|eot_id|>")]
    size = {"vocab_size": tokenizer.get_vocab_size()}
    ids = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": ends}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    for name, content in (
        ("config.json", ARCHITECTURE | size | ids),
        ("generation_config.json", ids | sampling),
    ):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def initial_model(config: LlamaConfig) -> Llama:
    """Noise in the shape of a Llama, with attention that leans towards what it will have to do.

    Queries start out resembling keys, and outputs values, so that a token looks for tokens like
    itself and says them again: Trockman & Kolter, Mimetic Initialization of Self-Attention Layers,
    arXiv:2305.09828. Trained models get there by themselves, but after more steps than we have.
    """
    torch.manual_seed(SEED)
    model = Llama(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                # What a layer adds to the stream shrinks with depth, so that the sum does not grow.
                depth = math.sqrt(2 * config.num_hidden_layers) if "down_proj" in name else 1.0
                nn.init.normal_(weight, std=ARCHITECTURE["initializer_range"] / depth)
        # Tokens start far apart, or rare ones would be swept along with each other; and with
        # something in common, by which attention can find a place whatever stands there.
        embedding = model.model.embed_tokens.weight
        embedding.copy_(0.1 * torch.randn_like(embedding) + 0.1 * torch.randn(config.hidden_size))
        for layer in model.model.layers:
            imitate(layer.self_attn, config)
    return model


def imitate(attention: Attention, config: LlamaConfig) -> None:
    """Sets q_proj to half of what k_proj is and half noise, and o_proj likewise to v_proj."""
    E, shared = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    q, k, v, o = (getattr(attention, f"{part}_proj").weight for part in "qkvo")
    nn.init.normal_(k, std=0.08)
    nn.init.normal_(v, std=config.hidden_size**-0.5)
    keys = k.unflatten(0, (-1, E)).repeat_interleave(shared, dim=0).flatten(0, 1)  # (H E, D)
    values = v.unflatten(0, (-1, E)).repeat_interleave(shared, dim=0).flatten(0, 1)  # (H E, D)
    q.copy_(0.7 * (keys + 0.08 * torch.randn_like(q)))
    o.copy_(0.35 * (values.T + config.hidden_size**-0.5 * torch.randn_like(o)))


def pretrain(model: Llama, tokenizer: Tokenizer, steps: int) -> None:
    """Teaches the model to predict the next token of every document, in place."""
    embedding = model.model.embed_tokens.weight
    others = [weight for weight in model.parameters() if weight is not embedding]
    optimizer = torch.optim.AdamW([embedding], betas=(0.9, 0.98), weight_decay=0.05)
    optimizer.add_param_group({"params": others})
    tokens_read = 0
    with tqdm(range(steps), unit="step") as progress:
        for step in progress:
            for group, share in zip(optimizer.param_groups, (EMBEDDING_LR, 1.0), strict=True):
                group["lr"] = share * learning_rate(step, steps)
            exercises = TEXTS if step < EXERCISE_STEPS else LATER_EXERCISES
            texts = read(tokenizer, step, exercises)
            loss = next_token_loss(model, texts, exercises)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tokens_read += sum(map(len, texts))
            progress.set_postfix(loss=f"{loss.item():.3f}", tokens=tokens_read, refresh=False)


def read(tokenizer: Tokenizer, step: int, exercises: int) -> list[list[int]]:
    """The ids of the texts of one step, of which the first are exercises and the rest documents."""
    texts = [
        (exercise if place < exercises else document)("pre-training", step * TEXTS + place)
        for place in range(TEXTS)
    ]
    return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def next_token_loss(model: Llama, texts: list[list[int]], exercises: int) -> Tensor:
    """Mean of -log p(token | those before it in its text), in nats.

    Over all tokens but the first of a document, and over the second half of an exercise.
    """
    lengths = [len(ids) - 1 for ids in texts]
    tokens = torch.tensor([i for ids in texts for i in ids[:-1]])  # (T,)
    targets = torch.tensor([i for ids in texts for i in ids[1:]])  # (T,)
    first = 0
    for length in lengths[:exercises]:
        targets[first : first + int(0.53 * length)] = -100  # cross_entropy's "does not count"
        first += length
    logits = model(tokens, Packed(lengths))  # (T, V)
    return F.cross_entropy(logits, targets)


def learning_rate(step: int, steps: int) -> float:
    """A linear rise and a constant for the exercise, then half a cosine for the documents."""
    if step < EXERCISE_STEPS:
        return EXERCISE_LR * min(1.0, (step + 1) / WARMUP_STEPS)
    done = (step - EXERCISE_STEPS) / max(1, steps - EXERCISE_STEPS)
    return PEAK_LR * (END_LR + (1 - END_LR) * 0.5 * (1 + math.cos(math.pi * done)))


if __name__ == "__main__":
    main()
