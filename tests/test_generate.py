"""Decoding: against transformers' generate, and against itself in other arrangements."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import random_tokens, tiny_config, tiny_llama

from model.attention import Packed
from model.generate import common_prefix, generate_batch, new_cache, stream
from model.sampling import Sampler, SamplingConfig

GREEDY = SamplingConfig(temperature=0.0)
WARM = SamplingConfig(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
NEVER = frozenset({-1})


def answer(model, prompt, config=GREEDY, seed=0, stops=NEVER, new=24, cache=None) -> list[int]:
    sampler = Sampler(config, seed, model.lm_head.weight.device)
    return list(stream(model, prompt, sampler, stops, new, cache))


def test_greedy_decoding_takes_the_argmax_of_the_full_forward_pass(device):
    model = tiny_llama().to(device)
    ids = random_tokens(11).tolist()
    for token in answer(model, list(ids)):
        logits = model(torch.tensor(ids, device=device), Packed([len(ids)]))
        assert token == logits[-1].argmax().item()
        ids.append(token)


def test_greedy_decoding_with_a_repetition_penalty_is_theirs():
    transformers = pytest.importorskip("transformers")
    model = tiny_llama()
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny_config())).eval()
    theirs.load_state_dict(model.state_dict())
    for seed, penalty in enumerate([1.0, 1.3, 0.8]):
        prompt = random_tokens(10, seed)
        wanted = theirs.generate(
            prompt[None],
            attention_mask=torch.ones(1, 10),
            max_new_tokens=30,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 10:].tolist()
        settings = SamplingConfig(repetition_penalty=penalty)
        assert answer(model, prompt.tolist(), settings, new=30) == wanted


@pytest.mark.parametrize("config", [GREEDY, WARM])
def test_each_row_of_a_batch_is_its_own_solo_run(config, device):
    """Ragged prompts, some of which stop early; seen to fail when finished rows stayed in front."""
    model = tiny_llama().to(device)
    prompts = [random_tokens(n, n).tolist() for n in (5, 17, 1, 9, 30)]
    stops = frozenset(range(0, 211, 17))
    solo = [answer(model, p, config, seed, stops) for seed, p in enumerate(prompts)]
    samplers = [Sampler(config, seed, device) for seed in range(len(prompts))]
    assert generate_batch(model, prompts, samplers, stops, 24) == solo
    assert len({len(a) for a in solo}) > 2, "the rows should end at different times"


def test_every_stop_id_ends_the_answer_and_is_not_part_of_it():
    model = tiny_llama()
    prompt = random_tokens(8).tolist()
    free = answer(model, prompt, new=12)
    for token in free:
        assert answer(model, prompt, stops=frozenset({5000, token})) == free[: free.index(token)]


def test_a_seed_fixes_the_answer_and_another_one_changes_it(device):
    model = tiny_llama().to(device)
    prompt = random_tokens(8).tolist()
    answers = [answer(model, prompt, WARM, seed) for seed in (3, 3, 4)]
    assert answers[0] == answers[1] != answers[2]


def test_a_kept_cache_computes_only_what_is_new_and_answers_as_a_fresh_one(device):
    """A conversation of five turns, then one whose beginning was edited."""
    model = tiny_llama().to(device)
    cache = new_cache(model, 1, 16)
    computed = []
    first = model.model.layers[0].input_layernorm  # the last norm sees a text's last token only
    first.register_forward_hook(lambda _, inputs, __: computed.append(len(inputs[0])))
    history: list[int] = []
    for turn in range(5):
        history = history + random_tokens(6, turn).tolist()
        computed.clear()
        reply = answer(model, history, cache=cache, new=7)
        # The last token of the last answer was chosen but not yet read, so it counts as new.
        assert computed[0] == (6 if turn == 0 else 7)
        assert reply == answer(model, history, new=7)
        history = history + reply
    edited = [*history[:10], 3, *history[11:20]]
    computed.clear()
    assert answer(model, edited, cache=cache) == answer(model, edited)
    assert computed[0] == len(edited) - 10


def test_an_answer_that_is_broken_off_leaves_a_cache_that_goes_on_right():
    model = tiny_llama()
    cache = new_cache(model, 1, 64)
    prompt = random_tokens(9).tolist()
    running = stream(model, prompt, Sampler(GREEDY), NEVER, 20, cache)
    partial = [next(running) for _ in range(3)]
    running.close()
    follow_up = [*prompt, *partial, 8, 9]
    assert answer(model, follow_up, cache=cache) == answer(model, follow_up)


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers():
    model = tiny_llama(max_position_embeddings=32)
    with pytest.raises(ValueError, match="the prompt has 32 tokens .* holds 32"):
        answer(model, [1] * 32)
    with pytest.raises(ValueError, match="the prompt is empty"):
        answer(model, [])
    with pytest.raises(ValueError, match="max-new-tokens is 0"):
        answer(model, [1], new=0)
    assert len(answer(model, [1] * 30, new=500)) == 2


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0


def test_tokens_come_one_by_one_as_they_are_computed():
    """The first one is there before the second is computed: that is what streaming means."""
    model = tiny_llama()
    calls = []
    model.model.norm.register_forward_hook(lambda *_: calls.append(1))
    done = []
    for _ in stream(model, [1, 2, 3], Sampler(GREEDY), NEVER, 5):
        done.append(len(calls))
    assert done == [1, 2, 3, 4, 5]
    assert all(b - a == 1 for a, b in pairwise(done))
