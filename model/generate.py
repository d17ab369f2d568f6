"""From a prompt to an answer, one token at a time.

First the whole prompt passes through the model at once ("prefill"), which fills the cache and
scores the first new token. From then on each call takes one token and scores the next.

Shapes: B texts, T tokens in this call, D hidden_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from model.cache import CachedAttention, KVCache
from model.generation_config import room_for
from model.llama import Llama
from model.sampling import Sampler

# Tokens of a prompt that pass through the model at once: what they need grows with the tokens
# before them, but no longer with the prompt's square.
PREFILL_TOKENS = 512


@torch.inference_mode()
def extend(model: Llama, cache: KVCache, new: Sequence[Sequence[int]]) -> Tensor:
    """Adds `new[b]` to text b of the cache; returns the scores of each text's next token, (B, V).

    Only the last token of each text reaches the head.
    """
    pattern = CachedAttention(cache, new)
    tokens = torch.tensor([i for ids in new for i in ids], device=cache.keys.device)  # (T,)
    ends = torch.tensor(list(accumulate(pattern.lengths)), device=tokens.device)  # (B,)
    hidden = model.model(tokens, pattern, ends - 1)  # (B, D)
    logits = model.lm_head(hidden)  # (B, V)
    pattern.done()
    return logits


def new_cache(model: Llama, rows: int, capacity: int) -> KVCache:
    """An empty cache of the model's dtype, on its device."""
    weight = model.model.embed_tokens.weight
    return KVCache(model.config, rows, capacity, weight.dtype, weight.device)


def prefill(model: Llama, cache: KVCache, prompt: Sequence[int]) -> Tensor:
    """Brings a cache of one text to hold `prompt`; returns the scores of the next token, (1, V).

    What cache and prompt share at their beginning is not computed again, so that in a conversation
    only the new turns cost anything. The last token always is, for its scores.
    """
    known = common_prefix(cache.tokens[0], prompt[:-1])
    cache.rewind(0, known)
    for start in range(known, len(prompt), PREFILL_TOKENS):
        logits = extend(model, cache, [prompt[start : start + PREFILL_TOKENS]])  # (1, V)
    return logits


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share at their beginning."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def stream(
    model: Llama,
    prompt: Sequence[int],
    sampler: Sampler,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    cache: KVCache | None = None,
) -> Iterator[int]:
    """Yields the answer's token ids as they are chosen, without the one that ends it.

    Args:
        model: the model.
        prompt: the ids to continue.
        sampler: chooses the tokens.
        stop_ids: the ids that end an answer.
        max_new_tokens: the longest answer; a full context ends it earlier.
        cache: a cache of one text, from an earlier turn of the conversation. It is extended, so
            pass it on to the next turn. The answer is that of a fresh one.

    Raises:
        ValueError: if the prompt leaves no room for an answer.
    """
    room = room_for(model.config, prompt, max_new_tokens)
    cache = cache or new_cache(model, 1, len(prompt) + room)
    cache.grow(len(prompt) + room)
    logits = prefill(model, cache, prompt)  # (1, V)
    answer: list[int] = []
    while True:
        token = int(sampler.choose(logits[0], chain(prompt, answer)))
        if token in stop_ids:
            return
        answer.append(token)
        yield token
        if len(answer) == room:
            return
        logits = extend(model, cache, [[token]])  # (1, V)


def generate_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """The answers to several prompts at once; each is what `stream` gives for its prompt alone.

    As soon as `is_stopped` says so they end where they are.

    Texts that have ended leave the batch, so the last ones do not pay for the others. All prompts
    pass through the model at once: for many long ones, call this for a few at a time.
    """
    if not prompts:
        return []
    rooms = [room_for(model.config, prompt, max_new_tokens) for prompt in prompts]
    capacity = max(len(p) + room for p, room in zip(prompts, rooms, strict=True))
    cache = new_cache(model, len(prompts), capacity)
    answers: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    logits = extend(model, cache, prompts)  # (B, V)
    while True:
        chosen = torch.stack(
            [
                samplers[i].choose(scores, chain(prompts[i], answers[i]))
                for i, scores in zip(active, logits, strict=True)
            ]
        ).tolist()
        going_on = []
        for row, (i, token) in enumerate(zip(active, chosen, strict=True)):
            if token in stop_ids:
                continue
            answers[i].append(token)
            if len(answers[i]) < rooms[i]:
                going_on.append(row)
        if not going_on or is_stopped():
            return answers
        if len(going_on) < len(active):
            cache.keep(going_on)
            active = [active[row] for row in going_on]
        logits = extend(model, cache, [[answers[i][-1]] for i in active])  # (B, V)
