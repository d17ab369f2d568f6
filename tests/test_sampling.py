"""Choosing the next token, against transformers' logits processors in their own order.

Each of these bugs was put into the code once and seen to fail here: penalty dividing negative
scores too; penalty applied per occurrence, or to the shifted scores; top_k keeping k - 1;
top_p dropping the token that reaches p; top_p before top_k; min_p relative to 1 instead of to the
likeliest; the global generator used instead of the sampler's own; bfloat16 kept for the penalty;
scores not shifted; a setting's type not looked at; only the first eos id read.
"""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from torch import Tensor

from model.generation_config import SamplingConfig, stop_ids
from model.sampling import Sampler, filtered, penalised

KEEPING = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 50},
    {"top_k": 1000},
    {"top_p": 1e-6},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_p": 0.95, "min_p": 0.05},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.1},
]


def scores(seed: int, size: int = 97) -> Tensor:
    """Random scores about as spread as a model's, (V,)."""
    return 4 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def theirs(config: SamplingConfig, logits: Tensor, seen: list[int]) -> Tensor:
    """What transformers' `generate` makes of the scores before it draws, (V,)."""
    processors = pytest.importorskip("transformers").generation.logits_process
    chain = processors.LogitsProcessorList()
    if config.repetition_penalty != 1:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.temperature not in (0, 1):
        chain.append(processors.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chain.append(processors.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        chain.append(processors.TopPLogitsWarper(config.top_p))
    if config.min_p:
        chain.append(processors.MinPLogitsWarper(config.min_p))
    return chain(torch.tensor([seen]), logits[None].float())[0]


def drawn_from(config: SamplingConfig, logits: Tensor, seen: list[int], monkeypatch) -> Tensor:
    """The probabilities that our sampler draws from, (V,)."""
    drawn = []

    def multinomial(probabilities: Tensor, count: int, generator: torch.Generator) -> Tensor:
        drawn.append(probabilities)
        return probabilities.argmax()[None]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", multinomial)
        Sampler(config, device=logits.device).choose(logits, seen)
    return drawn[0]


@pytest.mark.parametrize("settings", KEEPING, ids=str)
def test_the_same_tokens_are_kept(settings):
    for seed in range(30):
        config = SamplingConfig(temperature=1.0, **settings)
        assert torch.equal(filtered(scores(seed), config), theirs(config, scores(seed), []))


@pytest.mark.parametrize("settings", KEEPING, ids=str)
def test_of_equal_scores_as_many_are_kept(settings):
    """Which of the equal ones are kept, where not all are, is left open: neither sort is stable."""
    for seed in range(30):
        logits = (scores(seed) / 4).round()
        config = SamplingConfig(temperature=1.0, **settings)
        kept, wanted = filtered(logits, config), theirs(config, logits, [])
        assert torch.equal(kept.sort().values, wanted.sort().values)


@pytest.mark.parametrize("penalty", [0.5, 1.2, 1.0001, 30.0])
def test_the_repetition_penalty_is_theirs_and_counts_each_token_once(penalty):
    for seed in range(30):
        seen = [3, 3, 3, 0, 96, seed]
        config = SamplingConfig(repetition_penalty=penalty)
        assert torch.equal(
            penalised(scores(seed), seen, penalty), theirs(config, scores(seed), seen)
        )


def test_combined_settings_give_their_probabilities(device, monkeypatch):
    draw = random.Random(0)
    for seed in range(200):
        config = SamplingConfig(
            repetition_penalty=draw.choice([1.0, 1.1, 2.0, 0.7]),
            temperature=draw.choice([0.1, 0.6, 1.0, 1.7]),
            top_k=draw.choice([0, 1, 10, 60]),
            top_p=draw.choice([1.0, 0.9, 0.5]),
            min_p=draw.choice([0.0, 0.03, 0.3]),
        )
        seen = [draw.randrange(97) for _ in range(20)]
        logits = scores(seed).to(draw.choice([torch.float32, torch.bfloat16]))
        wanted = theirs(config, logits, seen).softmax(-1)
        got = drawn_from(config, logits.to(device), seen, monkeypatch).cpu()
        assert (got - wanted).abs().max() <= 1e-6
        assert torch.equal(got > 0, wanted > 0)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.99])
def test_in_a_vocabulary_of_llamas_size_the_nucleus_is_the_smallest_with_its_mass(top_p):
    """Against the definition in float64; a sum of 128,256 float32 numbers is not exact."""
    logits = scores(0, 128_256) / 4
    probabilities = logits.double().softmax(-1)
    kept = filtered(logits, SamplingConfig(temperature=1.0, top_p=top_p)).isfinite()
    mass, least = probabilities[kept].sum(), probabilities[kept].min()
    assert top_p - 1e-4 <= mass <= top_p + least + 1e-4
    assert least >= probabilities[~kept].max()


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize(
    "extremes",
    [[3e38, -3e38, 0.0], [-math.inf, 5.0, 4.0], [1e-40, 0.0, -1e-40], [0.0, 0.0, 0.0]],
    ids=str,
)
def test_extreme_scores_and_temperatures_still_give_a_token_that_is_possible(extremes, temperature):
    logits = torch.tensor(extremes)
    for settings in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        config = SamplingConfig(temperature=temperature, **settings)
        token = int(Sampler(config).choose(logits, []))
        assert logits[token] > -math.inf
        second, best = sorted(extremes)[-2:]
        if temperature < 1e-3 and best - second >= 1:
            assert token == extremes.index(best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_likeliest(dtype, device):
    for seed in range(20):
        logits = scores(seed).to(device, dtype)
        chosen = Sampler(SamplingConfig(), device=device).choose(logits, [1, 2])
        assert chosen.dtype == torch.int64 and chosen.shape == ()
        assert int(chosen) == int(logits.float().argmax())


def test_greedy_minds_the_repetition_penalty():
    logits = torch.tensor([5.0, 4.9, -1.0])
    assert int(Sampler(SamplingConfig(repetition_penalty=1.1)).choose(logits, [0])) == 1


def draws(sampler: Sampler, count: int, logits: Tensor) -> list[int]:
    return [int(sampler.choose(logits, [])) for _ in range(count)]


def test_the_seed_fixes_the_draws_and_nothing_else_does(device):
    config = SamplingConfig(temperature=1.0)
    logits = scores(0).to(device)
    first = draws(Sampler(config, 7, device), 50, logits)
    torch.manual_seed(123)
    torch.rand(5, device=device)
    assert draws(Sampler(config, 7, device), 50, logits) == first
    assert draws(Sampler(config, 8, device), 50, logits) != first


def test_two_samplers_do_not_disturb_each_other(device):
    config = SamplingConfig(temperature=1.0)
    logits = scores(0).to(device)
    alone = [draws(Sampler(config, seed, device), 50, logits) for seed in (7, 8)]
    samplers = Sampler(config, 7, device), Sampler(config, 8, device)
    together = [draws(s, 1, logits)[0] for _ in range(50) for s in samplers]
    assert [together[::2], together[1::2]] == alone


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 4}, {"top_p": 0.8}],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_their_probability_says(settings, device):
    """Pearson's chi-square over 4,000 draws; above 40 at 7 degrees of freedom is one in 10^6."""
    config = SamplingConfig(**({"temperature": 1.0} | settings))
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5], device=device)
    count = 4000
    drawn = torch.tensor(draws(Sampler(config, 0, device), count, logits)).bincount(minlength=8)
    expected = count * theirs(config, logits.cpu(), []).softmax(-1)
    assert (drawn[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((drawn - expected)[possible].square() / expected[possible]).sum()
    assert chi_square < 40


def write(folder, content: object, name: str = "generation_config.json") -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_files_recommendations_are_read(assets, tmp_path):
    llama = SamplingConfig.from_folder(assets / "llama-3.2-1b")
    assert llama == SamplingConfig(temperature=0.6, top_p=0.9)
    for folder in (assets / "smollm2-135m-instruct", assets / "stories260k", tmp_path):
        assert SamplingConfig.from_folder(folder) == SamplingConfig()


def test_every_setting_is_read_if_the_model_wants_to_be_sampled(tmp_path):
    given = {
        "repetition_penalty": 1.3,
        "temperature": 0.7,
        "top_k": 12,
        "top_p": 0.5,
        "min_p": 0.01,
    }
    write(tmp_path, given | {"do_sample": True})
    assert SamplingConfig.from_folder(tmp_path) == SamplingConfig(**given)
    write(tmp_path, given | {"do_sample": False})
    assert SamplingConfig.from_folder(tmp_path) == SamplingConfig(repetition_penalty=1.3)
    write(tmp_path, {"do_sample": True, "temperature": None})
    assert SamplingConfig.from_folder(tmp_path) == SamplingConfig(temperature=1.0)


BAD = {
    "repetition_penalty": [0, -1.0, math.nan, math.inf, "1.2"],
    "temperature": [-0.1, math.nan, math.inf, "hot", [0.6], True],
    "top_k": [-1, 1.5, "50", {}],
    "top_p": [0, 1.01, -0.5, math.nan, "0.9"],
    "min_p": [-0.1, 1.1, math.nan, "0"],
    "do_sample": ["yes", 1],
}


@pytest.mark.parametrize("name, value", [(name, v) for name, values in BAD.items() for v in values])
def test_a_bad_setting_in_the_file_is_refused_with_path_name_and_value(name, value, tmp_path):
    write(tmp_path, {"do_sample": True} | {name: value})
    with pytest.raises(ValueError) as caught:
        SamplingConfig.from_folder(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'generation_config.json'}: {name} is ")
    assert str(value) in message and "\n" not in message


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_file_that_is_no_json_object_is_refused(content, tmp_path):
    write(tmp_path, content)
    for read in (SamplingConfig.from_folder, stop_ids):
        with pytest.raises(ValueError, match="generation_config.json: "):
            read(tmp_path)


def test_every_id_that_ends_an_answer_is_read(assets):
    assert stop_ids(assets / "llama-3.2-1b") == {128001, 128008, 128009}
    assert stop_ids(assets / "smollm2-135m-instruct") == {2}


def test_config_json_says_what_ends_an_answer_where_the_other_file_does_not(tmp_path):
    write(tmp_path, {"eos_token_id": [5, 6]}, "config.json")
    assert stop_ids(tmp_path) == {5, 6}
    write(tmp_path, {"bos_token_id": 1})
    assert stop_ids(tmp_path) == {5, 6}
    write(tmp_path, {"eos_token_id": 0})
    assert stop_ids(tmp_path) == {0}


def test_a_model_whose_files_name_no_end_has_none(tmp_path):
    for config in ({}, {"eos_token_id": None}, {"eos_token_id": []}):
        write(tmp_path, config, "config.json")
        assert stop_ids(tmp_path) == frozenset()


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", ["</s>", -1, 2.0, [2, None], True])
def test_an_eos_that_is_no_token_id_is_refused_with_the_path(file, value, tmp_path):
    write(tmp_path, {"eos_token_id": value}, file)
    with pytest.raises(ValueError) as caught:
        stop_ids(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / file}: eos_token_id is {value!r}")
