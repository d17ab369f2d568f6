"""The one model of the server: nobody's answer depends on who else is there. Takes 10 seconds.

Seen to fail when the adapter stayed in the model for the next request, when a base answer did not
switch it off, when caches were kept by conversation alone, when the turn was not given back after
an error, when two models were in memory during a switch, when a stop left its place taken, when
the name of a model and not its folder told models apart, and when an error kept its tensors.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chat_places import Place, alone, answers, new_engine, request
from conftest import PROCESSOR_HAS_BF16, ROOT
from texts import WORDS

import app.engine
from app.engine import Engine, bytes_of
from app.model_files import open_model
from app.turns import Turns
from lora.durable import publish_folder
from lora.inject import lora_layers
from model.generate import stream
from model.generation_config import SamplingConfig
from model.llama import Llama
from model.sampling import Sampler
from model.weights import load_model


def turns_of(place: Place, engine: Engine, number: int) -> list[str]:
    """Three turns of a chat that differs from all others in words, adapter and settings."""
    adapter = (None, "one", "two")[number % 3]
    words, said = WORDS.split(), []
    for turn in range(3):
        said.append(" ".join(words[number + turn : number + 4 * turn + 3]))
        asked = request(place, said, adapter, conversation=f"chat {number}", length=6 + number % 4)
        said.extend(answers(engine, asked))
    return said


def weights_hash(model: Llama) -> str:
    adapters = {id(p) for layer in lora_layers(model).values() for p in layer.lora_A.parameters()}
    adapters |= {id(p) for layer in lora_layers(model).values() for p in layer.lora_B.parameters()}
    total = hashlib.sha256()
    for parameter in (p for p in model.parameters() if id(p) not in adapters):
        total.update(parameter.detach().numpy().tobytes())
    return total.hexdigest()


def test_sixteen_chats_at_once_get_the_answers_they_get_alone(chat_place, monkeypatch):
    expected = [turns_of(chat_place, new_engine(), number) for number in range(16)]
    assert len({tuple(said) for said in expected}) == 16
    loads = []
    load = app.engine.load_model
    monkeypatch.setattr(app.engine, "load_model", lambda *args: loads.append(args) or load(*args))
    engine = new_engine()
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda number: turns_of(chat_place, engine, number), range(16)))
    assert got == expected
    assert len(loads) == 1 and not engine.turns.line
    assert weights_hash(engine.model) == weights_hash(load_model(chat_place.files.folder))


def test_those_who_wait_are_told_how_many_come_first(chat_place):
    engine, told = new_engine(), []
    first = engine.answer([request(chat_place, "first", length=20)], lambda what: None)
    next(first)

    def wait(number: int) -> list[str]:
        return answers(engine, request(chat_place, f"number {number}"), tell=told.append)

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wait, number) for number in range(2)]
        while not {"One answer comes before this one …", "2 answers come first …"} <= set(told):
            assert not any(one.done() for one in waiting)
        list(first)
    assert [one.result() for one in waiting] == [
        alone(request(chat_place, f"number {number}")) for number in range(2)
    ]


def test_turns_come_in_the_order_of_arrival_and_can_be_given_up():
    turns, order, inside = Turns(), [], threading.Event()

    def take(name: str) -> None:
        with turns.turn(lambda ahead: None):
            order.append(name)

    def give_up(ahead: int) -> None:
        raise KeyboardInterrupt

    threads = []
    with turns.turn(lambda ahead: None):
        for name in "abc":
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            while len(turns.line) < len(threads) + 1:
                inside.wait(0.01)
        with pytest.raises(KeyboardInterrupt), turns.turn(give_up):
            pass
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c"] and not turns.line


def test_a_model_is_loaded_once_whatever_it_is_called(chat_place, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(chat_place.files.folder)
    monkeypatch.chdir(chat_place.folder)
    loads = []
    load = app.engine.load_model
    monkeypatch.setattr(app.engine, "load_model", lambda *args: loads.append(args) or load(*args))
    engine = new_engine()
    for name in (str(chat_place.files.folder), str(link), "./model", "./runs/../model/"):
        place = Place(chat_place.folder, open_model(name))
        answers(engine, request(place, "hello"))
    assert len(loads) == 1


def test_another_model_takes_the_place_of_the_first(chat_place, own_place, monkeypatch):
    engine = new_engine()
    answers(engine, request(chat_place, "hello", "one", conversation="a"))
    old = weakref.ref(engine.model.model.layers[0])
    cache = weakref.ref(next(iter(engine.caches.values())).keys)
    gc.collect()
    load, alive = app.engine.load_model, []

    def watched(*args):
        alive.append((old() is not None, cache() is not None))
        return load(*args)

    expected = alone(request(own_place, "hello"))
    monkeypatch.setattr(app.engine, "load_model", watched)
    assert answers(engine, request(own_place, "hello")) == expected
    assert alive == [(False, False)], "the old model was still in memory"


def test_an_adapter_is_for_its_own_request_only(chat_place):
    engine = new_engine()
    asked = {name: request(chat_place, "hello there", name) for name in (None, "one", "two")}
    expected = {name: alone(one) for name, one in asked.items()}
    assert len({str(text) for text in expected.values()}) == 3
    for name in (None, "one", "two", "one", None, "two", None):
        assert answers(engine, asked[name]) == expected[name], name


def test_an_adapter_that_was_trained_further_is_read_again(own_place):
    engine = new_engine()
    asked = request(own_place, "hello there", "one", conversation="a")
    before = answers(engine, asked)
    shutil.copytree(own_place.adapter("two"), own_place.adapter("one"), dirs_exist_ok=True)
    after = answers(engine, asked)
    assert before != after == alone(request(own_place, "hello there", "two"))


def test_base_and_tuned_answer_by_turns_and_as_they_do_alone(chat_place):
    tuned = request(chat_place, "hello there", "one", conversation="a")
    base = request(chat_place, "hello there", None, conversation="a")
    engine = new_engine()
    which = [written.which for written in engine.answer([tuned, base], lambda what: None)]
    assert which[:20] == [0, 1] * 10
    assert answers(engine, tuned, base) == [*alone(tuned), *alone(base)]
    assert len(engine.caches) == 2


def test_an_answer_can_be_stopped_at_any_token(chat_place):
    said = ["hello there"]
    asked = request(chat_place, said, "one", conversation="a")
    whole = alone(asked)[0]
    follow_up = request(chat_place, [*said, whole, "and then"], "one", conversation="a")
    expected = alone(follow_up)
    engine = new_engine()
    for count in range(14):
        writing = engine.answer([asked], lambda what: None)
        begun = "".join(written.text for _, written in zip(range(count), writing, strict=False))
        writing.close()
        assert whole.startswith(begun) and not engine.turns.line
        assert answers(engine, follow_up) == expected, f"stopped after {count}"


def test_only_what_is_new_in_a_conversation_is_computed(chat_place):
    engine = new_engine()
    said = ["hello there my friend " * 20]
    said += answers(engine, request(chat_place, said, "one", conversation="a"))
    computed = []
    engine.model.model.register_forward_pre_hook(lambda _, args: computed.append(len(args[0])))
    next_one = request(chat_place, [*said, "and then"], "one", conversation="a")
    text = answers(engine, next_one)
    new = len(next_one.ids) - len(request(chat_place, said[:1]).ids)
    assert computed[0] <= new < len(next_one.ids) / 4
    assert text == alone(next_one)
    without = request(chat_place, "and then", "one")
    assert answers(engine, without) == alone(without)
    computed.clear()
    answers(engine, next_one)
    assert computed[0] <= new, "an answer without history took the cache of the others"


def test_a_long_prompt_can_be_stopped_between_its_parts(chat_place, monkeypatch):
    monkeypatch.setattr(app.engine, "PREFILL_TOKENS", 16)
    asked = request(chat_place, WORDS * 2, conversation="a")
    engine = new_engine()
    parts = len(asked.ids) // 16
    written = list(engine.answer([asked], lambda what: None))
    assert parts > 5 and [w.tokens for w in written[:parts]] == [0] * parts
    engine = new_engine()
    writing = engine.answer([asked], lambda what: None)
    next(writing)
    writing.close()
    [cache] = engine.caches.values()
    assert cache.tokens[0] == asked.ids[: len(cache.tokens[0])] and len(cache.tokens[0]) == 16


def test_old_caches_make_room_for_new_ones(chat_place, monkeypatch):
    engine = new_engine()
    answers(engine, request(chat_place, "hello", conversation="0"))
    [one] = engine.caches.values()
    monkeypatch.setattr(app.engine, "CACHE_BYTES", 3 * bytes_of(one))
    for name in "123456":
        answers(engine, request(chat_place, "hello", conversation=name))
    assert [name for name, _, _ in engine.caches] == ["4", "5", "6"]
    monkeypatch.setattr(app.engine, "CACHE_BYTES", 1)
    answers(engine, request(chat_place, "hello", conversation="7"))
    kept = [name for name, _, _ in engine.caches]
    assert kept == ["4", "5", "6"], (
        "one that is too large by itself must not cost the others theirs"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_after_running_out_of_memory_everything_is_freed(chat_place, monkeypatch, error):
    engine, held = new_engine(), []

    def fails(*args):
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise type(error)(*error.args)

    answers(engine, request(chat_place, "hello", conversation="a"))
    with monkeypatch.context() as patch:
        patch.setattr(app.engine, "prefill", fails)
        patch.setattr(app.engine, "stream", fails)
        with pytest.raises(ValueError, match="not enough memory") as caught:
            answers(engine, request(chat_place, "hello", conversation="a"))
        assert held[0]() is None and not engine.caches and caught.value.__context__ is None
    assert not engine.turns.line
    asked = request(chat_place, "hello")
    assert answers(engine, asked) == alone(asked)


def test_another_error_is_logged_and_the_next_answer_is_right(chat_place, monkeypatch, caplog):
    engine = new_engine()

    def fails(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with monkeypatch.context() as patch:
        patch.setattr(app.engine, "stream", fails)
        with pytest.raises(ValueError, match="the model failed"):
            answers(engine, request(chat_place, "hello"))
    assert "mat1" in caplog.text and not engine.turns.line
    asked = request(chat_place, "hello")
    assert answers(engine, asked) == alone(asked)


def change_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda place: shutil.rmtree(place.folder / "runs" / "one"), "No such file"),
        (lambda place: (place.adapter("one") / "adapter_config.json").unlink(), "No such file"),
        (
            lambda place: (place.adapter("one") / "adapter_model.safetensors").write_bytes(b"x"),
            "not a whole safetensors file",
        ),
    ],
    ids=["deleted", "no config", "half written"],
)
def test_a_spoilt_adapter_is_told_and_the_next_answer_is_right(own_place, spoil, said):
    engine = new_engine()
    asked = request(own_place, "hello", "one")
    other = request(own_place, "hello", "two")
    expected = alone(other)
    answers(engine, other)
    spoil(own_place)
    for _ in range(2):
        with pytest.raises(ValueError, match=said):
            answers(engine, asked)
        assert answers(engine, other) == expected


def test_a_checkpoint_that_is_not_what_was_written_is_refused(own_place):
    target = own_place.folder / "runs" / "one" / "checkpoints" / "step-000010"
    files = {path.name: path.read_bytes() for path in own_place.adapter("one").iterdir()}
    publish_folder(target, files)
    asked = request(own_place, "hello")
    from_checkpoint = replace(asked, adapter=target)
    engine = new_engine()
    assert answers(engine, from_checkpoint) == alone(request(own_place, "hello", "one"))
    change_last_byte(target / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="step-000010 is damaged"):
        answers(engine, from_checkpoint)
    assert answers(engine, asked) == alone(asked)


def test_an_adapter_of_another_model_is_refused(chat_place, own_place):
    change_last_byte(own_place.files.folder / "model.safetensors")
    engine = new_engine()
    with pytest.raises(ValueError, match="was trained on other weights"):
        answers(engine, request(own_place, "hello", "one"))
    assert not lora_layers(engine.model)
    asked = request(own_place, "hello")
    assert answers(engine, asked) == alone(asked)


def test_a_seed_fixes_the_draws_of_its_own_answer(chat_place):
    warm = SamplingConfig(temperature=1.0)
    asked = [request(chat_place, "hello", sampling=warm, seed=seed) for seed in range(4)]
    expected = [alone(one) for one in asked]
    assert len({str(text) for text in expected}) > 1
    engine = new_engine()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: answers(engine, one), asked)) == expected


def test_an_answer_is_what_the_model_streams(chat_place):
    """Seen to fail when the last bytes of an answer, its seed or its length were dropped."""
    model, files = load_model(chat_place.files.folder, torch.float32), chat_place.files
    sampling, engine, halves = SamplingConfig(temperature=1.0), new_engine(), 0
    for seed in range(20):
        asked = request(chat_place, "hello", length=5, sampling=sampling, seed=seed)
        sampler = Sampler(sampling, seed, engine.device)
        tokens = list(stream(model, asked.ids, sampler, files.stop_ids, 5))
        written = list(engine.answer([asked], lambda what: None))
        assert "".join(more.text for more in written) == files.tokenizer.decode(tokens)
        assert written[-1].tokens == len(tokens)
        halves += files.tokenizer.decode(tokens).endswith("\ufffd")
    assert halves and not engine.caches


def test_an_answer_is_cut_only_where_the_longest_ends(chat_place):
    """Seen to fail when no answer was called cut, and when the model's stop tokens were ignored."""
    engine, asked = new_engine(), request(chat_place, "hello", length=5)
    cut = [written.is_cut for written in engine.answer([asked], lambda what: None)]
    assert cut == [False] * 4 + [True, True]
    stops = replace(chat_place.files, stop_ids=frozenset(range(400)))
    [ended] = engine.answer([replace(asked, files=stops)], lambda what: None)
    assert ended.tokens == 0 and not ended.is_cut


def test_what_an_answer_waits_for_is_told(chat_place):
    """Seen to fail when loading and reading were not told."""
    engine, told = new_engine(), []
    for _ in range(2):
        answers(engine, request(chat_place, "hello"), tell=told.append)
    assert told == [f"Loading {chat_place.files.name} …", "Reading …", "Reading …"]


def test_the_model_has_the_dtype_that_was_asked_for(chat_place):
    """Seen to fail when the dtype was always chosen by the device."""
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        engine = Engine("cpu", name)
        answers(engine, request(chat_place, "hello"))
        assert engine.model.lm_head.weight.dtype == dtype


def test_the_weights_are_hashed_once_for_each_model(chat_place, own_place, monkeypatch):
    """Seen to fail when each adapter had them hashed, and when another model kept the hash."""
    hashed, weights_sha256 = [], app.engine.weights_sha256
    monkeypatch.setattr(
        app.engine, "weights_sha256", lambda path: hashed.append(path) or weights_sha256(path)
    )
    engine = new_engine()
    for name in ("one", "two", "one"):
        answers(engine, request(chat_place, "hello", name))
    assert hashed == [chat_place.files.folder]
    change_last_byte(own_place.files.folder / "model.safetensors")
    with pytest.raises(ValueError, match="was trained on other weights"):
        answers(engine, request(own_place, "hello", "one"))


def test_a_cache_that_is_used_again_is_kept_longest(chat_place, monkeypatch):
    """Seen to fail when use did not move a cache to the end, or with half its size counted."""
    engine = new_engine()
    answers(engine, request(chat_place, "hello", conversation="0"))
    [one] = engine.caches.values()
    c = chat_place.files.config
    numbers = c.num_hidden_layers * c.num_key_value_heads * c.head_dim * one.capacity
    monkeypatch.setattr(app.engine, "CACHE_BYTES", 3 * 2 * 4 * numbers)  # keys, values; 4 bytes
    for name in "123" + "1" + "45":
        answers(engine, request(chat_place, "hello", conversation=name))
    assert [name for name, _, _ in engine.caches] == ["1", "4", "5"]


def test_a_cache_grows_with_its_conversation(chat_place, monkeypatch):
    """Seen to fail when a kept cache did not grow, and when one was larger than the context."""
    monkeypatch.setattr(app.engine, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(app.engine, "CACHE_BLOCK", 64)
    said = ["hello", "yes", "hello there " * 14, "yes", "hello there " * 8, "yes", "and then"]
    asked = [request(chat_place, said[:count], conversation="a") for count in (1, 3, 5, 7)]
    context = len(asked[-1].ids) + asked[-1].max_new_tokens
    engine, capacities = new_engine(), []
    answers(engine, request(chat_place, "hello"))
    engine.model.config = replace(engine.model.config, max_position_embeddings=context)
    for one in asked:
        assert answers(engine, one) == alone(replace(one, conversation=None))
        [cache] = engine.caches.values()
        capacities.append(cache.capacity)
    assert capacities[0] % 64 == 0 and capacities[0] < capacities[1] < capacities[-1] == context


MANY_LENGTHS = """
from app.engine import Engine, Request
from app.model_files import open_model
from model.generation_config import SamplingConfig

engine, demo = Engine("cpu", "bf16"), open_model("demo")
for lengths in ([15, *range(31, 224, 32)], range(10, 210)):
    print("lengths", flush=True)
    for length in lengths:
        ids = [1941, *[50 + length] * length]
        list(engine.answer([Request(demo, None, ids, SamplingConfig(), 0, 1)], lambda what: None))
"""


def test_prompts_of_many_lengths_share_their_kernels():
    """A few lengths meet all kernels that there are: prompts are filled up to share them.

    There is one for every shape, of up to half a MB, which PyTorch keeps. OneDNN says itself which
    it makes. Seen to fail when linear layers, and when attention took prompts as long as they are.
    """
    done = subprocess.run(
        [sys.executable, "-c", MANY_LENGTHS],
        cwd=ROOT,
        env=os.environ | {"ONEDNN_VERBOSE": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    _, some, all_of_them = done.stdout.split("lengths\n")
    known, met = kernels_made(some), kernels_made(all_of_them)
    assert known or not PROCESSOR_HAS_BF16()
    assert met <= known, sorted(met - known)


def kernels_made(verbose: str) -> set[str]:
    """The kernels in what oneDNN says, by their operation, layouts and shape; without the times."""
    lines = (line.split(",") for line in verbose.splitlines() if "create:cache_miss" in line)
    return {",".join(line[5:-1]) for line in lines}
