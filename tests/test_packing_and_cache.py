"""One forward pass, many ways to call it: packed, padded, cached. All compute the same.

Bound: 1e-5 of the largest logit in float32, unless bits are compared. Each bug below was put into
the code once and seen to fail here: documents not separated; positions not restarted; the causal
triangle drawn from the top left with a cache; a cache row written one position late; keys beyond a
text's own length not hidden from it; padding left in the stream.
"""

from __future__ import annotations

import pytest
import torch
from conftest import random_tokens, tiny_llama

from model import attention
from model.attention import Packed
from model.cache import CachedAttention, KVCache
from model.generate import extend

BOUND = 1e-5
LENGTHS = [9, 1, 25, 4]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return ((a - b).abs().max() / b.abs().max()).item() <= BOUND


def documents() -> list[torch.Tensor]:
    return [random_tokens(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_documents_score_as_each_alone(device, dtype):
    model = tiny_llama().to(device, dtype)
    packed = model(torch.cat(documents()).to(device), Packed(LENGTHS)).split(LENGTHS)
    for together, document in zip(packed, documents(), strict=True):
        alone = model(document.to(device), Packed([len(document)]))
        assert close(together, alone)


def test_positions_restart_with_every_document():
    """Scores depend on distances alone: only precision would suffer, and in long streams only."""
    assert Packed([3, 1, 2]).positions(torch.device("cpu")).tolist() == [0, 1, 2, 0, 0, 1]


def test_repeated_key_value_heads_score_as_shared_ones(monkeypatch, device):
    """As on a GPU without FlashAttention. Seen to fail when the heads were repeated in turns."""
    model, tokens = tiny_llama().to(device), torch.cat(documents()).to(device)
    shared = model(tokens, Packed(LENGTHS))
    monkeypatch.setattr(attention, "takes_no_gqa", lambda q: True)
    assert close(model(tokens, Packed(LENGTHS)), shared)


def test_changing_one_document_leaves_the_others_logits_bit_equal(device):
    model = tiny_llama().to(device)
    before = documents()
    after = [*before[:2], (before[2] + 1) % 211, before[3]]
    a, b = (model(torch.cat(d).to(device), Packed(LENGTHS)).split(LENGTHS) for d in (before, after))
    assert [torch.equal(x, y) for x, y in zip(a, b, strict=True)] == [True, True, False, True]


def test_a_document_gives_no_gradient_to_another(device):
    model = tiny_llama(tie_word_embeddings=False).to(device)
    tokens = torch.cat([torch.arange(0, 20), torch.arange(20, 50)]).to(device)
    model(tokens, Packed([20, 30]))[20:].square().sum().backward()
    gradient = model.model.embed_tokens.weight.grad
    assert not gradient[:20].any() and gradient[20:50].any(dim=1).all()


@pytest.mark.parametrize("seed", range(6))
def test_padding_changes_nothing_wherever_and_whatever_it_is(seed, device):
    """Any amount, on either side, with any id under it; one row is padding alone.

    Its own logits are finite and its embedding has no gradient.
    """
    model = tiny_llama(tie_word_embeddings=False).to(device)
    generator = torch.Generator().manual_seed(seed)
    width = max(LENGTHS) + int(torch.randint(0, 7, (), generator=generator))
    pad = 200 + seed  # an id that no document holds
    tokens = torch.full((len(LENGTHS) + 1, width), pad)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, document in enumerate(d % 200 for d in documents()):
        start = int(torch.randint(0, width - len(document) + 1, (), generator=generator))
        tokens[row, start : start + len(document)] = document
        mask[row, start : start + len(document)] = True
    logits = model.forward_padded(tokens.to(device), mask.to(device))
    assert torch.isfinite(logits).all()
    for row, document in enumerate(d % 200 for d in documents()):
        alone = model(document.to(device), Packed([len(document)]))
        assert close(logits[row][mask[row]], alone)
    logits.square().sum().backward()
    gradient = model.model.embed_tokens.weight.grad
    assert torch.isfinite(gradient).all() and not gradient[pad].any()


@pytest.mark.parametrize("chunks", [[1] * 25, [25], [24, 1], [1, 24], [7, 1, 1, 9, 7], [5] * 5])
def test_a_cache_filled_in_any_chunks_scores_as_one_pass(chunks, device):
    model = tiny_llama().to(device)
    tokens = random_tokens(25)
    whole = model(tokens.to(device), Packed([25]))
    cache = KVCache(model.config, 1, 25, torch.float32, device)
    for chunk in tokens.split(chunks):
        logits = extend(model, cache, [chunk.tolist()])
        assert close(logits[0], whole[len(cache.tokens[0]) - 1])


def test_texts_of_different_lengths_share_a_cache(device):
    """Prefill of ragged prompts, then one token each, then several each, then one text alone."""
    model = tiny_llama().to(device)
    texts = [random_tokens(30, seed).tolist() for seed in range(3)]
    whole = [model(torch.tensor(t, device=device), Packed([30])) for t in texts]
    cache = KVCache(model.config, 3, 30, torch.float32, device)
    steps = [[3, 11, 6], [1, 1, 1], [1, 1, 1], [4, 1, 2], [1, 1, 1]]
    for step in steps:
        known = [len(t) for t in cache.tokens]
        new = [t[k : k + n] for t, k, n in zip(texts, known, step, strict=True)]
        logits = extend(model, cache, new)
        for row, (k, n) in enumerate(zip(known, step, strict=True)):
            assert close(logits[row], whole[row][k + n - 1])
    cache.keep([1])
    logits = extend(model, cache, [texts[1][len(cache.tokens[0]) :][:2]])
    assert close(logits[0], whole[1][len(cache.tokens[0]) - 1])


def test_memory_behind_a_texts_end_never_reaches_it(device):
    """A shorter text is masked up to the longest one's length; what lies there has weight zero.

    Seen to fail when the cache started uninitialised: zero times a stray NaN is NaN.
    """
    model = tiny_llama().to(device)
    stray = torch.full((1 << 16,), float("nan"), device=device)  # likely to be handed out again
    del stray
    cache = KVCache(model.config, 2, 20, torch.float32, device)
    cache.grow(30)
    assert not cache.keys.any() and not cache.values.any()
    extend(model, cache, [[1, 2, 3, 4, 5, 6], [7]])
    assert torch.isfinite(extend(model, cache, [[1], [2]])).all()


def test_a_rewound_cache_forgets_and_a_grown_one_remembers(device):
    model = tiny_llama().to(device)
    tokens = random_tokens(40).tolist()
    cache = KVCache(model.config, 1, 20, torch.float32, device)
    extend(model, cache, [tokens[:15] + [5, 5, 5, 5]])
    cache.rewind(0, 15)
    cache.grow(40)
    logits = extend(model, cache, [tokens[15:]])
    assert cache.tokens == [tokens] and cache.capacity == 40
    assert close(logits[0], model(torch.tensor(tokens, device=device), Packed([40]))[-1])


def test_a_call_that_dies_midway_adds_nothing_to_the_cache():
    model = tiny_llama()
    cache = KVCache(model.config, 1, 20, torch.float32)
    extend(model, cache, [[1, 2, 3]])
    wanted = extend(model, cache, [[4, 5]])
    cache.rewind(0, 3)
    handle = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extend(model, cache, [[9, 9, 9]])
    handle.remove()
    assert cache.tokens == [[1, 2, 3]]
    assert torch.equal(extend(model, cache, [[4, 5]]), wanted)


def test_a_token_costs_one_row_of_logits_and_one_key():
    """Prefill scores the last position alone, in chunks, whatever the prompt's length."""
    from model.generate import PREFILL_TOKENS, prefill

    model = tiny_llama(num_hidden_layers=1)
    rows = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    widths = []
    model.model.layers[0].register_forward_hook(lambda _, inputs, __: widths.append(len(inputs[0])))
    count = 2 * PREFILL_TOKENS + 100
    cache = KVCache(model.config, 1, count, torch.float32)
    prefill(model, cache, random_tokens(count).tolist())
    assert rows == [1, 1, 1] and widths == [PREFILL_TOKENS, PREFILL_TOKENS, 100]


def test_positions_of_cached_tokens_go_on_where_the_text_stopped():
    model = tiny_llama()
    cache = KVCache(model.config, 2, 20, torch.float32)
    extend(model, cache, [[1, 2, 3], [4]])
    pattern = CachedAttention(cache, [[5], [6, 7]])
    assert pattern.positions(torch.device("cpu")).tolist() == [3, 1, 2]
