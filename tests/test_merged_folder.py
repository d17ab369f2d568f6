"""The folder of a merged model: the base's own files, shards, and answers that end.

About 15 seconds, most of them for a real model. Answers are compared with those of transformers,
which decides by the folder's files alone when an answer is over.

Each of these bugs was put into the code once and seen to fail here:
another dtype not written into config.json, or into one of its two fields; config.json or the
tokenizer written anew though nothing changed; the end of a turn not added, or put in place of what
was there; the rest of generation_config.json dropped; the index naming one file for all, or
counting tensors instead of bytes; a shard closed one tensor late, or its size not begun anew; a
header that is not aligned, has no metadata, or counts from the beginning of the file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, random_tokens
from exports import (
    DTYPES,
    END_OF_TURN,
    LARGE,
    Pair,
    contents,
    edit_json,
    make_pair,
    read_all,
    same_bits,
    weights_files,
)
from model_folders import sharded
from safetensors import safe_open
from test_merge import load_theirs
from torch import nn

from data.chat_format import Message, chat_format_of
from data.hub import SMALL_FILES
from data.tokenizer import Tokenizer
from lora.adapter import save_adapter
from lora.config import ATTENTION, MLP, BaseModel, LoRAConfig
from lora.inject import add_lora, lora_layers
from model.generate import generate_batch
from model.generation_config import SamplingConfig
from model.sampling import Sampler
from model.weights import INDEX_FILE, load_model, weights_sha256

transformers = pytest.importorskip("transformers")
DEMO = ROOT / "model" / "demo"
LLAMA31 = "{# <|start_header_id|> Cutting Knowledge Date #}"  # what tells the format


def small(folder: Path) -> dict[str, bytes]:
    """All files of a folder but its weights and their index."""
    is_weights = (".safetensors", ".safetensors.index.json")
    return {n: c for n, c in contents(folder).items() if not n.endswith(is_weights)}


def full_pair(folder: Path, **config) -> Pair:
    """A pair whose base has every file that a model can have, each in a hand that is not ours."""
    pair = make_pair(folder, **{"eos_token_id": [2, END_OF_TURN]} | config)
    (pair.base / "tokenizer_config.json").write_bytes(
        b'{"model_max_length":1e30,\r\n"x":"\\u00e9"}'
    )
    (pair.base / "special_tokens_map.json").write_bytes(b"{}\n\n\n")
    (pair.base / "chat_template.jinja").write_text(LLAMA31)
    (pair.base / "tokenizer.model").write_bytes(bytes(range(256)))
    generation = json.dumps({"eos_token_id": [2, END_OF_TURN], "top_p": 0.9}, indent=7)
    (pair.base / "generation_config.json").write_text(generation)
    (pair.base / "config.json").write_text(json.dumps(config_of(pair), indent=5) + " \n")
    return pair


def config_of(pair: Pair) -> dict[str, object]:
    return json.loads((pair.base / "config.json").read_text())


def test_all_small_files_are_the_bases_byte_for_byte(tmp_path):
    pair = full_pair(tmp_path, dtype="float32")
    for name in ("README.md", "training_args.bin", "pytorch_model.bin", ".gitattributes"):
        (pair.base / name).write_bytes(b"none of a merged model's business")
    pair.merge(tmp_path / "merged")
    merged = small(tmp_path / "merged")
    assert merged == {name: (pair.base / name).read_bytes() for name in SMALL_FILES}


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    "said",
    [
        {"dtype": "float32"},
        {"torch_dtype": "bfloat16"},
        {"dtype": "float16", "torch_dtype": "float16"},
        {"dtype": None, "torch_dtype": "float16"},
        {},
    ],
    ids=str,
)
def test_another_dtype_changes_its_field_and_nothing_else(tmp_path, said, name):
    pair = full_pair(tmp_path, **said)
    pair.merge(tmp_path / "merged", name)
    merged, base = small(tmp_path / "merged"), small(pair.base)
    config, before = json.loads(merged.pop("config.json")), json.loads(base.pop("config.json"))
    assert merged == base
    wanted = str(DTYPES[name]).removeprefix("torch.")
    assert config == before | dict.fromkeys(said or ["dtype"], wanted)
    assert load_theirs(tmp_path / "merged").dtype == DTYPES[name]
    assert {tensor.dtype for tensor in read_all(tmp_path / "merged").values()} == {DTYPES[name]}


@pytest.mark.parametrize("generation", [None, {"top_p": 0.9, "eos_token_id": 2}, {"top_p": 0.9}])
def test_the_end_of_a_turn_is_added_where_a_base_model_lacks_it(tmp_path, generation):
    """The one thing that is changed on purpose: the merged model has learnt to end its turns."""
    pair = make_pair(tmp_path, eos_token_id=2)
    if generation:
        edit_json(pair.base / "generation_config.json", **generation)
    pair.merge(tmp_path / "merged")
    merged = small(tmp_path / "merged")
    written = json.loads(merged.pop("generation_config.json"))
    assert written == (generation or {}) | {"eos_token_id": [2, END_OF_TURN]}
    base = small(pair.base)
    base.pop("generation_config.json", None)
    assert drop_dtype(merged) == drop_dtype(base)


def drop_dtype(files: dict[str, bytes]) -> dict[str, object]:
    config = json.loads(files["config.json"]) | {"dtype": None}
    return files | {"config.json": config}


# --- shards -------------------------------------------------------------------------------------


def sizes_in(path: Path) -> dict[str, int]:
    """Bytes of each tensor in a file, in the order of the file, as safetensors reads them."""
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name).nbytes for name in file.offset_keys()}


@pytest.mark.parametrize("bound", [1, 20_000, 30_000, 100_000, LARGE])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_shards_are_as_full_as_the_bound_allows_and_the_index_finds_all(tmp_path, name, bound):
    pair = make_pair(tmp_path, write=sharded, tie_word_embeddings=False)
    pair.merge(tmp_path / "whole", name)
    pair.merge(tmp_path / "merged", name, bound)
    files = weights_files(tmp_path / "merged")
    shards = [sizes_in(path) for path in files]
    for one, following in zip(shards, [*shards[1:], None], strict=True):
        assert sum(one.values()) <= bound or len(one) == 1
        if following:
            assert sum(one.values()) + next(iter(following.values())) > bound
    assert same_bits(read_all(tmp_path / "merged"), read_all(tmp_path / "whole"))

    count = len(files)
    assert (count == 1) == (bound == LARGE) and (count == 21) == (bound == 1)
    if count == 1:
        assert files[0].name == "model.safetensors"
        assert not (tmp_path / "merged" / INDEX_FILE).exists()
        return
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert [path.name for path in files] == names
    index = json.loads((tmp_path / "merged" / INDEX_FILE).read_text())
    assert index["weight_map"] == {
        tensor: path.name for path, shard in zip(files, shards, strict=True) for tensor in shard
    }
    assert index["metadata"]["total_size"] == sum(sum(shard.values()) for shard in shards)


@pytest.mark.parametrize("bound", [1, 50_000])
def test_shards_are_loaded_by_transformers_and_by_us(tmp_path, bound):
    pair = make_pair(tmp_path)
    pair.merge(tmp_path / "merged", "fp32", bound)
    tokens = random_tokens(50, vocab_size=400)[None]
    with torch.no_grad():
        theirs = load_theirs(tmp_path / "merged")(tokens).logits
        whole = pair.merge(tmp_path / "whole", "fp32") and load_theirs(tmp_path / "whole")
        assert torch.equal(theirs, whole(tokens).logits)
    load_model(tmp_path / "merged")


@pytest.mark.parametrize("bound", [1, 50_000, LARGE])
def test_a_file_is_laid_out_as_safetensors_lays_it_out(tmp_path, bound):
    """Eight bytes, a header that begins with a brace and ends aligned, and no gap after it."""
    pair = make_pair(tmp_path)
    pair.merge(tmp_path / "merged", "bf16", bound)
    for path in weights_files(tmp_path / "merged"):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        assert content[8:9] == b"{" and length % 8 == 0
        assert header.pop("__metadata__") == {"format": "pt"}
        places = [entry["data_offsets"] for entry in header.values()]
        assert [start for start, _ in places] == [0, *(end for _, end in places[:-1])]
        assert len(content) == 8 + length + places[-1][1]


# --- answers ------------------------------------------------------------------------------------

ANSWERS = LoRAConfig(4, 8.0, targets=ATTENTION + MLP)


def chatting_pair(folder: Path, base: Path, std: float) -> Pair:
    """A model that converses, with an adapter that changes what it says but not that it ends."""
    model = load_model(base, torch.float32)
    add_lora(model, ANSWERS)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        for matrix in (layer.lora_A, layer.lora_B):
            nn.init.normal_(matrix.weight, std=std, generator=generator)
    sha256 = weights_sha256(base)
    save_adapter(model, ANSWERS, BaseModel("some/llama", None, sha256), folder / "adapter")
    return Pair(base, folder / "adapter", model)


def prompts_of(base: Path, *questions: str) -> list[list[int]]:
    chat_format = chat_format_of(Tokenizer.from_folder(base))
    turns = [[Message("user", question)] for question in questions]
    return [rendered.ids for rendered in chat_format.render_batch(turns, generation_prompt=True)]


def their_answers(folder: Path, prompts: list[list[int]], most: int) -> list[list[int]]:
    """Greedy answers of transformers, computed in float32, with the token that ended each."""
    model = load_theirs(folder).float()
    answers = [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=most,
            do_sample=False,
            temperature=None,
            top_p=None,
            pad_token_id=0,
        )[0, len(prompt) :]
        for prompt in prompts
    ]
    return [answer.tolist() for answer in answers]


def our_answers(
    model: nn.Module, base: Path, prompts: list[list[int]], most: int
) -> list[list[int]]:
    """Greedy answers, without the tokens that ended them."""
    ends = chat_format_of(Tokenizer.from_folder(base)).end_ids
    return generate_batch(model, prompts, [Sampler(SamplingConfig())] * len(prompts), ends, most)


@pytest.mark.parametrize("stops", [[1942, 1949, 1950], 1942], ids=["as it is", "as a base model"])
def test_transformers_ends_its_answers_and_says_what_we_say(tmp_path, stops):
    """Also where the base goes on until <|end_of_text|>, as those that cannot converse do."""
    base = tmp_path / "demo"
    shutil.copytree(DEMO, base, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("config.json", "generation_config.json"):
        edit_json(base / name, eos_token_id=stops)
    pair = chatting_pair(tmp_path, base, std=0.05)
    pair.merge(tmp_path / "merged", "fp32")
    prompts = prompts_of(base, "Who are you?", "Tell me a story.", "Hello!", "What is 2+2?")
    ours = our_answers(pair.model, base, prompts, 100)
    end = Tokenizer.from_folder(base).control_ids["<|eot_id|>"]
    assert their_answers(tmp_path / "merged", prompts, 100) == [[*answer, end] for answer in ours]
    assert ours != our_answers(load_model(base, torch.float32), base, prompts, 100)


def test_a_real_model_keeps_its_files_and_its_answers_end(tmp_path, assets):
    base, merged = assets / "smollm2-135m-instruct", tmp_path / "merged"
    pair = chatting_pair(tmp_path, base, std=0.02)
    pair.merge(merged, max_shard_bytes=100_000_000)
    assert len(weights_files(merged)) == 3
    assert small(merged) == {name: (base / name).read_bytes() for name in small(merged)}
    prompts = prompts_of(base, "What is the capital of France?")
    theirs = their_answers(merged, prompts, 40)
    end = Tokenizer.from_folder(base).control_ids["<|im_end|>"]
    ours = our_answers(load_model(merged, torch.float32), base, prompts, 40)
    assert theirs == [[*ours[0], end]]
