"""Which conversations a step trains on, and how they are packed, for any sizes and settings."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from data.batches import (
    MULTIPLE,
    MicroBatch,
    Mixture,
    conversations_of_step,
    hold_out,
    pack,
    steps_per_epoch,
)
from data.dataset import Example

hypothesis = pytest.importorskip("hypothesis")
assume, given, st = hypothesis.assume, hypothesis.given, hypothesis.strategies
thorough = hypothesis.settings(max_examples=200, deadline=None)  # a busy machine is no flaw
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any).map(tuple)
batch_sizes = st.integers(1, 50)
seeds = st.integers(0, 2**63 - 1)
lengths_of_texts = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@thorough
@given(sizes, batch_sizes, seeds, st.integers(0, 3))
def test_an_epoch_has_every_conversation_once(sizes, batch_size, seed, epoch):
    """And its last step is what is left, not dropped and not filled up.

    Seen to fail when the last step was dropped.
    """
    mixture = Mixture(sizes)
    per_epoch = steps_per_epoch(mixture, batch_size)
    steps = [
        conversations_of_step(mixture, batch_size, seed, epoch * per_epoch + step)
        for step in range(per_epoch)
    ]
    assert sorted(sum(steps, [])) == list(range(sum(sizes)))
    assert all(len(step) == batch_size for step in steps[:-1])
    assert len(steps[-1]) == sum(sizes) - (per_epoch - 1) * batch_size > 0


@thorough
@given(sizes, seeds)
def test_each_epoch_and_each_seed_has_its_own_order(sizes, seed):
    assume(sum(sizes) >= 20)
    mixture = Mixture(sizes)
    orders = [mixture.epoch(seed, epoch).tolist() for epoch in range(3)]
    orders.append(mixture.epoch((seed + 1) % 2**63, 0).tolist())
    assert len({tuple(order) for order in orders}) == 4


@thorough
@given(sizes, batch_sizes, seeds, st.integers(0, 200))
def test_a_step_is_a_pure_function(sizes, batch_size, seed, step):
    """Whatever was asked before."""
    mixture = Mixture(sizes)
    first = conversations_of_step(mixture, batch_size, seed, step)
    for other in (0, step + 1, 3 * step):
        conversations_of_step(mixture, batch_size, seed + other, other)
    assert conversations_of_step(Mixture(sizes), batch_size, seed, step) == first


def test_neighbours_do_not_stay_together():
    """Or it would not be shuffled: of 1,000 places hardly one has its own successor behind it."""
    order = Mixture((1000,)).epoch(7, 0)
    assert (np.diff(order) == 1).sum() < 10


weighted = st.integers(1, 4).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(1, 40), min_size=count, max_size=count).map(tuple),
        st.lists(st.floats(0.05, 20), min_size=count, max_size=count).map(tuple),
    )
)


@thorough
@given(weighted, seeds)
def test_each_source_has_its_share_of_an_epoch(sizes_and_weights, seed):
    """To one place, and of its conversations all equally often, give or take one, over epochs.

    Seen to fail when a source began anew in every epoch.
    """
    sizes, weights = sizes_and_weights
    mixture = Mixture(sizes, weights)
    firsts = np.cumsum((0, *sizes))
    seen: Counter[int] = Counter()
    for epoch in range(4):
        order = mixture.epoch(seed, epoch)
        assert len(order) == mixture.epoch_size
        assert abs(len(order) - sum(sizes)) <= len(sizes)
        seen.update(order.tolist())
        for source in range(len(sizes)):
            here = ((order >= firsts[source]) & (order < firsts[source + 1])).sum()
            wanted = sum(sizes) * weights[source] / sum(weights)
            assert abs(here - wanted) <= 0.5 + 1e-6
    for source in range(len(sizes)):
        counts = [seen[number] for number in range(firsts[source], firsts[source + 1])]
        assert max(counts) - min(counts) <= 1
    assert set(seen) <= set(range(sum(sizes)))


def test_weights_in_any_unit_are_the_same_shares():
    for seed in range(5):
        a, b = Mixture((30, 10), (1.0, 3.0)), Mixture((30, 10), (25.0, 75.0))
        assert a.epoch(seed, 1).tolist() == b.epoch(seed, 1).tolist()
        assert (a.epoch(seed, 1) >= 30).sum() == 30


@thorough
@given(lengths_of_texts, st.integers(2, 700), st.integers(1, 9))
def test_packing_keeps_every_text_and_the_limit(lengths, most_tokens, multiple_of):
    """For any number of processes. Seen to fail when the limit was ignored."""
    packs = pack(lengths, most_tokens, multiple_of)
    assert sorted(place for places in packs for place in places) == list(range(len(lengths)))
    assert len(packs) % multiple_of == 0
    for places in packs:
        assert places == sorted(places)
        assert sum(lengths[place] for place in places) <= most_tokens or len(places) == 1


@thorough
@given(lengths_of_texts, st.integers(300, 2000), st.integers(1, 9))
def test_micro_batches_are_about_equally_full(lengths, most_tokens, multiple_of):
    """The fullest has at most one text more than the emptiest: without its last, it was no fuller.

    Seen to fail when texts were dealt out in turn.
    """
    packs = pack(lengths, most_tokens, multiple_of)
    filled = [sum(lengths[place] for place in places) for places in packs]
    for places, tokens in zip(packs, filled, strict=True):
        if places:
            assert tokens - min(lengths[place] for place in places) <= min(filled)


@thorough
@given(lengths_of_texts, st.integers(300, 2000))
def test_there_are_hardly_more_micro_batches_than_needed(lengths, most_tokens):
    """Every further one costs a pass over the weights. Seen to fail when each text got its own."""
    fewest = math.ceil(sum(lengths) / most_tokens)
    assert len(pack(lengths, most_tokens)) <= 2 * fewest + 1


@thorough
@given(lengths_of_texts, st.integers(2, 700), st.permutations([1, 2, 4]))
def test_any_number_of_processes_shares_out_the_same_texts(lengths, most_tokens, counts):
    """Each process takes every n-th micro-batch, and none is taken twice or left."""
    for count in counts:
        packs = pack(lengths, most_tokens, count)
        shares = [packs[rank::count] for rank in range(count)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(i for share in shares for p in share for i in p) == list(range(len(lengths)))


@st.composite
def conversations(draw) -> list[Example]:
    made = []
    for number in range(draw(st.integers(0, 6))):
        is_target = np.array(draw(st.lists(st.booleans(), min_size=1, max_size=20)))
        made.append(Example(np.arange(len(is_target), dtype="<u4") + 1000 * number, is_target))
    return made


@thorough
@given(conversations())
def test_a_micro_batch_has_each_target_behind_what_stands_before_it(rows):
    """The first token of a conversation is never a target, and nothing is read across a border.

    Token i of conversation n has the id 1000 n + i here, so that an id says where it comes from.
    Seen to fail when the first token was taken for a target, and when the places of the
    second conversation began at 0.
    """
    batch = MicroBatch.of(rows)
    wanted = [
        1000 * number + place
        for number, row in enumerate(rows)
        for place in range(1, len(row.tokens))
        if row.is_target[place]
    ]
    assert batch.targets.tolist() == wanted
    before, fillers = batch.before_target.tensor_split([len(wanted)])
    assert batch.tokens[before].tolist() == [token - 1 for token in wanted]
    assert set(fillers.tolist()) <= set(before[:1].tolist())
    assert len(fillers) == -len(wanted) % MULTIPLE
    assert sum(batch.lengths) == len(batch.tokens) and all(n > 0 for n in batch.lengths)
    assert len(batch.tokens) % MULTIPLE == 0
    starts = np.cumsum([0, *batch.lengths])[:-1]
    assert all(token % 1000 == 0 for token in batch.tokens[starts].tolist())


@thorough
@given(conversations())
def test_no_token_is_computed_behind_the_last_target(rows):
    """From it nothing is predicted; but for the filler behind all.

    Seen to fail when whole conversations were packed.
    """
    batch = MicroBatch.of(rows)
    ends = (np.cumsum(batch.lengths) - 1).tolist()
    fillers = sorted(set(ends) - set(batch.before_target.tolist()))
    assert fillers in ([], ends[-1:])
    assert not fillers or batch.lengths[-1] < MULTIPLE


@thorough
@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 70))
def test_copies_of_a_held_out_conversation_are_held_out_too(contents, count):
    """Content, not place, decides. Seen to fail when the first rows were taken."""
    digests = np.array([hash_of(content) for content in contents], np.uint64)
    chosen = hold_out(digests, count)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, len(set(contents)))
    assert set(chosen.tolist()) <= set(digests.tolist())
    shuffled = digests[np.random.default_rng(0).permutation(len(digests))]
    assert hold_out(np.concatenate([shuffled, digests]), count).tolist() == chosen.tolist()


@thorough
@given(st.sets(st.integers(0, 10_000), min_size=20, max_size=60), st.integers(1, 10))
def test_most_of_the_choice_stays_when_data_is_added(contents, count):
    """One new conversation displaces at most one."""
    digests = np.array(sorted(map(hash_of, contents)), np.uint64)
    before = set(hold_out(digests[1:], count).tolist())
    after = set(hold_out(digests, count).tolist())
    assert len(before - after) <= 1


def hash_of(content: int) -> int:
    return int(np.random.default_rng(content).integers(2**63))


@pytest.mark.parametrize("most_tokens", [2, 100, 10**9])
def test_a_text_longer_than_the_limit_is_alone(most_tokens):
    packs = pack([500, 1, 1], most_tokens)
    assert ([0] in packs) == (most_tokens < 500)
