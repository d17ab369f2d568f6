"""What a user can get wrong: the command, what is spoilt before, and what the one line must hold.

A row is (command, thing, value, what to do): the last three stand in the line, in this order or in
another. Rows that need more than a command are made by `Wrong` with a function that spoils the
place, or with variables of the environment. The place has `model`, `rows.jsonl` and `run`, a
finished run of four steps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class Wrong(NamedTuple):
    """One wrong input."""

    command: str
    thing: str
    value: str
    advice: str
    spoil: Callable[[Path], object] = lambda here: None
    env: Mapping[str, str] = NO_SETTINGS


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    """A file with this content."""
    content = content.encode() if isinstance(content, str) else content
    return lambda here: (here / name).write_bytes(content)


def edited(name: str, **changes: object) -> Callable[[Path], object]:
    """A JSON file with some of its fields changed."""

    def spoil(here: Path) -> None:
        raw = json.loads((here / name).read_text())
        (here / name).write_text(json.dumps(raw | changes))

    return spoil


def without(*names: str) -> Callable[[Path], object]:
    """Files or folders that are gone."""

    def spoil(here: Path) -> None:
        for name in names:
            path = here / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def cut(name: str) -> Callable[[Path], object]:
    """A file that lacks its second half."""
    return lambda here: os.truncate(here / name, (here / name).stat().st_size // 2)


def folder(name: str) -> Callable[[Path], object]:
    """A folder where a file should be."""

    def spoil(here: Path) -> None:
        (here / name).unlink(missing_ok=True)
        (here / name).mkdir()

    return spoil


def both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    """One after the other."""
    return lambda here: [change(here) for change in changes]


TRAIN = "train.py --model model --data rows.jsonl --output new --dtype fp32 --device cpu"
RESUME = "train.py --output run --resume"
ASK = "chat.py ask Hello --model model --device cpu --dtype fp32"
INSPECT = "python -m data.inspect rows.jsonl --model model"
EXPORT = "export.py run --merged new"
HUB = "train.py --model lab/llama --data rows.jsonl --output new --device cpu"
LAST = "run/checkpoints/step-000004"

FLAGS = [
    (f"{TRAIN} --lr 0", "--lr", "0.0", "must be above 0"),
    (f"{TRAIN} --lr nan", "--lr", "nan", "must be above 0"),
    (f"{TRAIN} --lr fast", "--lr", "'fast'", "see train.py --help"),
    (f"{TRAIN} --batchsize 4", "unknown flag", "--batchsize", "did you mean --batch-size?"),
    (f"{TRAIN} --batch-size 0", "--batch-size", "0", "at least 1"),
    (f"{TRAIN} --batch-size", "--batch-size", "expected one argument", "see train.py --help"),
    (f"{TRAIN} --epochs -1", "--epochs", "-1.0", "above 0"),
    (f"{TRAIN} --max-steps -1", "--max-steps", "-1", "at least 0"),
    (f"{TRAIN} --schedule step", "--schedule", "step", "choose one of cosine, linear, constant"),
    (f"{TRAIN} --train-on user", "--train-on", "user", "choose one of assistant, all, last"),
    (f"{TRAIN} --lora-dropout 1", "--lora-dropout", "1.0", "below 1"),
    (f"{TRAIN} --lora-targets wq", "no layer", "wq", "the model has down_proj"),
    (f"{TRAIN} --lora-targets lm_head", "--lora-targets", "lm_head", "name layers below it"),
    (f"{TRAIN} --data-weights 1 2", "--data-weights", "1.0 2.0", "give as many as --data has"),
    (f"{TRAIN} --data-weights 0", "--data-weights", "0.0", "is above 0 and at most 1e9"),
    (f"{TRAIN} --seed 9223372036854775808", "--seed", "9223372036854775808", "below 2^63"),
    (f"{TRAIN} --max-length 20", "rows.jsonl", "40 of 40 rows", "raise --max-length"),
    (f"{TRAIN} --dtype int4", "--dtype", "int4", "choose one of auto, bf16, fp16, fp32"),
    (f"{TRAIN} --device tpu", "--device", "tpu", "choose one of auto, cuda, mps, cpu"),
    (f"{TRAIN} --device mps", "device", "'mps'", "use --device cpu"),
    (f"{TRAIN} --output run", "output", "run", "choose another folder"),
    (f"{TRAIN} --output rows.jsonl/a", "output", "rows.jsonl is a file", "choose another"),
    (f"{TRAIN} --output /proc/new", "output", "/proc/new", "choose another"),
    (f"{TRAIN} --output n\udce9w", "--output", r"'n\udce9w'", "rename it to UTF-8 text"),
    (f"{TRAIN} --backup ''", "--backup", "empty", "give a folder, or hub:USER/NAME"),
    (f"{TRAIN} --backup new/b", "--backup", "new/b", "choose another disk"),
    (f"{TRAIN} --backup rows.jsonl", "--backup", "rows.jsonl", "choose another folder"),
    (f"{TRAIN} --backup hub:x", "Hub", "'x'", "write owner/name"),
    ("chat.py --port 0", "port", "0", "from 1 to 65535"),
    ("chat.py --prot 1", "unknown flag", "--prot", "did you mean --port?"),
    ("chat.py --address no.such.host.", "address", "'no.such.host.'", "use 0.0.0.0"),
    ("chat.py --device tpu", "device", "'tpu'", "choose one of auto, cuda, mps, cpu"),
    ("chat.py --model ./none", "no folder at", "none", "check the path"),
    ("chat.py --adapter none", "adapter", "none", "give its folder or that of its run"),
    ("chat.py ask", "required", "PROMPT", "see chat.py ask --help"),
    (f"{ASK} world", "unexpected argument", "'world'", "put quotes around"),
    ("chat.py ask '' --model model", "prompt", "empty", "ask something"),
    (f"{ASK} --seed -1", "seed", "-1", "must be 0 or more"),
    (f"{ASK} --temperature -1", "temperature", "-1.0", "0 (greedy) or more"),
    (f"{ASK} --top-p 3 --temperature 1", "top_p", "3.0", "above 0 and at most 1"),
    (f"{ASK} --temperature 0 --top-k 5", "--top-k", "temperature 0", "add --temperature 1"),
    (f"{ASK} --max-new-tokens 0", "max-new-tokens", "0", "must be at least 1"),
    (f"{ASK} --dtype fp8", "dtype", "'fp8'", "choose one of auto, bf16, fp16, fp32"),
    (f"{ASK} --adapter ''", "--adapter", "empty", "give a folder"),
    (f"{ASK} --adapter none", "adapter", "none", "give its folder or that of its run"),
    (f"{ASK} --adapter model", "model", "no adapter_config.json", "take another"),
    ("export.py run", "nothing to do", "--gguf FILE", "add --merged FOLDER"),
    (f"{EXPORT} --type q8_0", "--type", "no effect", "without --gguf; add it"),
    ("export.py run --gguf g --type q4", "--type", "'q4'", "choose one of f16, bf16, q8_0"),
    (f"{EXPORT} --max-shard-size 5PB", "--max-shard-size", "'5PB'", "as 5GB"),
    ("export.py run --merged model", "--merged", "model", "choose a new folder"),
    ("export.py none --merged new", "adapter", "none", "give its folder or that of its run"),
    ("export.py run --push x", "Hub", "'x'", "write owner/name"),
    (f"{INSPECT} --rows 0", "--rows", "'0'", "give numbers from 1 on"),
    (f"{INSPECT} --split dev", "rows.jsonl", "dev", "only train"),
    (f"{INSPECT} --max-length 0", "--max-length", "0", "a token and one to predict it from"),
    (f"{INSPECT} --train-on nobody", "--train-on", "'nobody'", "choose one of assistant"),
    (f"{INSPECT} --max-dropped 2", "--max-dropped", "2.0", "from 0 to 1"),
]

CONFIG = "model/config.json"
MODEL_FOLDERS = [
    Wrong(f"{TRAIN} --model ./none", "no folder at", "none", "check the path"),
    Wrong(f"{TRAIN} --model 'a b'", "Hub id", "'a b'", "write owner/name"),
    Wrong(f"{TRAIN} --model ''", "Hub id", "''", "write owner/name"),
    Wrong(TRAIN, "model", "no such file", "download it again", without("model/config.json")),
    Wrong(TRAIN, "model/config.json", "JSON", "download it again", written(CONFIG, "{")),
    Wrong(TRAIN, "model/config.json", "list", "download it again", written(CONFIG, "[]")),
    Wrong(
        TRAIN, "model_type", "'mistral'", "use another model",
        edited(CONFIG, model_type="mistral"),
    ),
    Wrong(
        TRAIN, "num_hidden_layers", "100000", "use another model",
        edited(CONFIG, num_hidden_layers=100_000),
    ),
    Wrong(
        TRAIN, "hidden_size", "'wide'", "use another model",
        edited(CONFIG, hidden_size="wide"),
    ),
    Wrong(
        TRAIN, "embed_tokens.weight", "[400, 48]", "download both again",
        edited(CONFIG, vocab_size=100),
    ),
    Wrong(
        TRAIN, "tokenizer.json", "neither", "download one of them", without("model/tokenizer.json")
    ),
    Wrong(
        TRAIN, "model/tokenizer.json", "Model missing", "download it again",
        written("model/tokenizer.json", "{}"),
    ),
    Wrong(
        TRAIN, "model/tokenizer_config.json", "line 1", "download it again",
        written("model/tokenizer_config.json", "{"),
    ),
    Wrong(
        TRAIN, "model/tokenizer_config.json", "Is a directory", "download it again",
        folder("model/tokenizer_config.json"),
    ),
    Wrong(
        TRAIN, "model/chat_template.jinja", "Is a directory", "download it again",
        folder("model/chat_template.jinja"),
    ),
    Wrong(
        ASK, "model/generation_config.json", "Is a directory", "download it again",
        folder("model/generation_config.json"),
    ),
    Wrong(
        ASK, "temperature", "'hot'", "use another model",
        written("model/generation_config.json", '{"do_sample": true, "temperature": "hot"}'),
    ),
    Wrong(
        TRAIN, "model.safetensors", "not a whole", "download it again",
        cut("model/model.safetensors"),
    ),
    Wrong(
        TRAIN, "model", "model.safetensors", "download these", without("model/model.safetensors")
    ),
    Wrong(
        f"{ASK}", "model.safetensors.index.json", "'../a.safetensors'", "use another model",
        lambda here: (
            without("model/model.safetensors")(here),
            written("model/model.safetensors.index.json",
                    '{"weight_map": {"a": "../a.safetensors"}}')(here),
        ),
    ),
]  # fmt: skip

DATA = [
    Wrong(f"{TRAIN} --data none.jsonl", "no file or folder", "none.jsonl", "check the path"),
    Wrong(f"{TRAIN} --data ''", "Hub id", "''", "write owner/name"),
    Wrong(f"{TRAIN} --eval-data none.jsonl", "no file", "none.jsonl", "check the path"),
    Wrong(f"{TRAIN} --data x.csv", "x.csv", ".jsonl", "convert it", written("x.csv", "a,b")),
    Wrong(f"{TRAIN} --data d", "d", ".parquet", "choose another data set", folder("d")),
    Wrong(TRAIN, "rows.jsonl", "no rows", "choose other data", written("rows.jsonl", "")),
    Wrong(TRAIN, "rows.jsonl", "line 22", "cut or damaged", cut("rows.jsonl")),
    Wrong(TRAIN, "rows.jsonl", "a number", "make it one", written("rows.jsonl", "7\n")),
    Wrong(TRAIN, "rows.jsonl", "1 of 1 rows", "need a column", written("rows.jsonl", '{"a": 1}')),
    Wrong(
        f"{TRAIN} --data x.parquet", "x.parquet", "not a whole", "download it again",
        written("x.parquet", b"PAR1" * 9),
    ),
    Wrong(
        "python -m data.inspect x.json --model model", "x.json", "an object", "make it one",
        written("x.json", "{}"),
    ),
    Wrong(INSPECT, "tokenizer.json", "neither", "download one", without("model/tokenizer.json")),
]  # fmt: skip

CONFIG_OF_RUN = "run/config.json"
ADAPTER_CONFIG = "run/adapter/adapter_config.json"
ADAPTER_WEIGHTS = "run/adapter/adapter_model.safetensors"


def unsaved(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A run without checkpoints, out of which its own files could be put back."""
    return both(change, without("run/checkpoints"))


def stray(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """An adapter in a folder that is no run."""
    return both(change, without(CONFIG_OF_RUN))


OTHER_ROWS = '{"instruction": "a", "output": "b"}\n' * 9
RUNS = [
    Wrong(f"{RESUME} --lr 1", "--lr", "was 0.005, now 1.0", "Leave these flags"),
    Wrong(f"{RESUME} --model demo", "--model", "was model, now demo", "Leave these flags"),
    Wrong("train.py --output model --resume", "model", "no run", "choose another --output"),
    Wrong(
        RESUME, "run was trained on other data", "rows.jsonl", "start another run",
        written("rows.jsonl", OTHER_ROWS),
    ),
    Wrong(RESUME, CONFIG_OF_RUN, "line 1", "restore it", unsaved(written(CONFIG_OF_RUN, "{"))),
    Wrong(RESUME, CONFIG_OF_RUN, "list", "restore it", unsaved(written(CONFIG_OF_RUN, "[]"))),
    Wrong(RESUME, "lr", "'fast'", "restore it", unsaved(edited(CONFIG_OF_RUN, lr="fast"))),
    Wrong(RESUME, "backup", "7", "restore it", unsaved(edited(CONFIG_OF_RUN, backup=7))),
    Wrong(
        RESUME, "data_revisions", "[7]", "restore it",
        unsaved(edited(CONFIG_OF_RUN, data_revisions=[7])),
    ),
    Wrong(
        RESUME, CONFIG_OF_RUN, "not what was written", "restore it",
        unsaved(edited(CONFIG_OF_RUN, seed=7)),
    ),
    Wrong(RESUME, "run/run.lock", "no file of ours", "remove it", folder("run/run.lock")),
    Wrong(
        RESUME, "run/metrics.jsonl", "Is a directory", "see what is there",
        folder("run/metrics.jsonl"),
    ),
    Wrong(
        "export.py run --merged loop", "Symlink loop", "loop", "choose another place",
        lambda here: (here / "loop").symlink_to("loop"),
    ),
    Wrong(EXPORT, ADAPTER_CONFIG, "line 1", "take another", stray(written(ADAPTER_CONFIG, "{"))),
    Wrong(EXPORT, "r is", "'many'", "take another", stray(edited(ADAPTER_CONFIG, r="many"))),
    Wrong(EXPORT, "use_dora", "True", "take another", stray(edited(ADAPTER_CONFIG, use_dora=True))),
    Wrong(f"{ASK} --adapter run", ADAPTER_WEIGHTS, "not a whole", "take another",
          stray(cut(ADAPTER_WEIGHTS))),
    Wrong(f"{ASK} --adapter run", ADAPTER_WEIGHTS, "missing", "take another",
          stray(without(ADAPTER_WEIGHTS))),
    Wrong(f"{ASK} --adapter run", "run/adapter", "not what was written", "write it again",
          cut(ADAPTER_WEIGHTS)),
    Wrong(EXPORT, "run/adapter", "not what was written", "write it again",
          edited(ADAPTER_CONFIG, r=5)),
    Wrong(EXPORT, "run/adapter", "manifest.json", "write it again",
          without("run/adapter/manifest.json")),
    Wrong(f"{ASK} --adapter {LAST}", LAST, "adapter_model.safetensors", "take another checkpoint",
          cut(f"{LAST}/adapter_model.safetensors")),
    Wrong(f"export.py {LAST} --merged new", LAST, "manifest.json", "take another checkpoint",
          without(f"{LAST}/manifest.json")),
    Wrong(f"{ASK} --adapter run", "run", LAST, "give its checkpoint", without("run/adapter")),
    Wrong("chat.py --adapter run", "run", LAST, "give its checkpoint", without("run/adapter")),
    Wrong(f"{EXPORT} --model demo", "run/adapter", "other weights than demo", "use its own base"),
]  # fmt: skip

NOBODY = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
ENDPOINTS = [
    (HUB, "http://[bad", "http://[bad"),
    (HUB, "http://a:99999", "http://a:99999"),
    (HUB, "nonsense", "nonsense"),
    (f"{ASK} --model lab/llama", "http://me:secret@a:b", "http://a:b"),
    ("python -m data.inspect lab/chats", "ftp://a", "ftp://a"),
    ("export.py run --push me/new", "//a", "//a"),
    (f"{TRAIN} --backup hub:me/new", ":", ":"),
]
ENVIRONMENT = [
    *(
        Wrong(command, "HF_ENDPOINT", f"'{shown}'", "unset it", env={"HF_ENDPOINT": address})
        for command, address, shown in ENDPOINTS
    ),
    Wrong(HUB, "HF_HUB_OFFLINE", "lab/llama", "run it once with a connection"),
    Wrong(f"{TRAIN} --data lab/x", "HF_HUB_OFFLINE", "lab/x", "run it once with a connection"),
    Wrong(HUB, "HF_HUB_ETAG_TIMEOUT", "'soon'", "unset it", env={"HF_HUB_ETAG_TIMEOUT": "soon"}),
    Wrong(HUB, "127.0.0.1:9", "lab/llama", "run it once with a connection", env=NOBODY),
    Wrong("export.py run --push me/x", "not logged in", "127.0.0.1:9", "log in with", env=NOBODY),
    Wrong(TRAIN, "cache", "/proc/no", "XDG_CACHE_HOME", env={"XDG_CACHE_HOME": "/proc/no"}),
    Wrong(TRAIN, "RANK", "'first'", "unset it", env={"RANK": "first"}),
    Wrong(TRAIN, "WORLD_SIZE", "'two'", "unset it", env={"WORLD_SIZE": "two"}),
]

BAD_INPUTS = [Wrong(*row) for row in FLAGS] + MODEL_FOLDERS + DATA + RUNS + ENVIRONMENT
