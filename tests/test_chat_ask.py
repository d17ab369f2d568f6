"""`python chat.py ask`, run from the shell as a user would. Takes about a minute.

Seen to fail when stdout also held the speed, when the prompt's own tokens were printed before the
answer, and when an error was raised past the one line that tells it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_llama
from hub_server import hub

import app.ask
from app.ask import speed, with_a_break
from lora.adapter import save_adapter
from lora.config import BaseModel, LoRAConfig
from lora.inject import add_lora
from model import answering
from model.weights import load_model, weights_sha256

DEMO = ROOT / "model" / "demo"


def ask(*arguments: str, env: dict[str, str] | None = None, stdin: str | None = None):
    return subprocess.run(
        [sys.executable, str(ROOT / "chat.py"), "ask", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        env=(env or dict(os.environ)) | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def refusal(*arguments: str, **more) -> str:
    """The one line that answers a mistake."""
    done = ask(*arguments, **more)
    assert done.returncode == 2 and done.stdout == "", done
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and len(lines[0]) <= 300 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_8_bits_where_they_cannot_be_had():
    for arguments, says in (
        (["--quantize", "int4"], "chat.py: quantize is 'int4'; the only choice is int8"),
        (
            ["--quantize", "int8", "--dtype", "fp32"],
            "chat.py: quantize is 'int8', which needs bf16",
        ),
    ):
        assert says in refusal("hello", "--model", "demo", *arguments)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """Copies of the demo, each with one thing wrong."""
    root = tmp_path_factory.mktemp("broken")
    names = "no_config other_architecture truncated outside missing_tensor no_format".split()
    for name in names:
        shutil.copytree(DEMO, root / name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (root / "no_config" / "config.json").unlink()
    edit(root / "other_architecture" / "config.json", model_type="mistral")
    weights = root / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (root / "outside" / "model.safetensors").rename(root / "secret.safetensors")
    index = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (root / "outside" / "model.safetensors.index.json").write_text(json.dumps(index))
    edit(root / "missing_tensor" / "config.json", tie_word_embeddings=False)
    tokenizer = (root / "no_format" / "tokenizer.json").read_text()
    for token in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        tokenizer = tokenizer.replace(token, token.replace("<|", "<|my_"))
    (root / "no_format" / "tokenizer.json").write_text(tokenizer)
    return root


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name, said",
    [
        ("no_config", "config.json: no such file"),
        ("other_architecture", "model_type is 'mistral'"),
        ("truncated", "model.safetensors is not a whole safetensors file"),
        ("outside", "names a shard outside the folder: '../secret.safetensors'"),
        ("missing_tensor", "the weights lack lm_head.weight"),
        ("no_format", "unknown chat format"),
        ("not_there", "no folder at"),
    ],
)
def test_a_wrong_model_folder_gets_one_line(broken, name, said):
    line = refusal("Hello", "--model", str(broken / name))
    assert said in line and name in line


def test_wrong_arguments_get_one_line(tmp_path):
    assert "the prompt is empty" in refusal("  ")
    assert "did you mean --temperature?" in refusal("Hi", "--temprature", "1")
    assert "prompt is not UTF-8" in refusal("a\udcffb")
    assert "--adapter is empty" in refusal("Hi", "--adapter", "")
    assert "seed is -1" in refusal("Hi", "--seed", "-1")
    assert "repetition_penalty is 1e-308" in refusal("Hi", "--repetition-penalty", "1e-308")
    assert "name too long" in refusal("Hi", "--model", "./" + "x" * 5000)
    assert "--top-p has no effect" in refusal("Hi", "--temperature", "0", "--top-p", "0.5")
    assert "top_p is 3.0" in refusal("Hi", "--top-p", "3")
    assert "invalid int value: 'many'" in refusal("Hi", "--max-new-tokens", "many")
    assert "max-new-tokens is 0" in refusal("Hi", "--max-new-tokens", "0")
    assert "device is 'tpu'" in refusal("Hi", "--device", "tpu")
    assert "dtype is 'int3'" in refusal("Hi", "--dtype", "int3")
    assert "there is no such adapter" in refusal("Hi", "--adapter", str(tmp_path / "none"))
    assert "no adapter and no finished run" in refusal("Hi", "--adapter", str(tmp_path))
    too_long = refusal("-", stdin="Anna lives in the house. " * 2000)
    assert "tokens and the model's context holds 2,048" in too_long


def test_an_adapter_for_another_model_gets_one_line(tmp_path):
    other = tiny_llama()
    add_lora(other, LoRAConfig())
    save_adapter(other, LoRAConfig(), BaseModel("somebody/else", "main"), tmp_path / "shape")
    assert "the adapter belongs to somebody/else" in refusal(
        "Hi", "--adapter", str(tmp_path / "shape")
    )
    demo = load_model(DEMO)
    add_lora(demo, LoRAConfig())
    save_adapter(demo, LoRAConfig(), BaseModel("a/b", "main", "0" * 64), tmp_path / "weights")
    line = refusal("Hi", "--adapter", str(tmp_path / "weights"))
    assert "was trained on other weights than demo has" in line and "a/b" in line


def test_an_adapter_changes_the_answer(tmp_path):
    model = load_model(DEMO)
    add_lora(model, LoRAConfig(rank=2, alpha=64))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    base = BaseModel("demo", None, weights_sha256(DEMO))
    save_adapter(model, LoRAConfig(rank=2, alpha=64), base, tmp_path / "run" / "adapter")
    flags = ("Where does Anna live?", "--max-new-tokens", "12")
    plain, adapted = ask(*flags), ask(*flags, "--adapter", str(tmp_path / "run"))
    assert plain.returncode == adapted.returncode == 0
    assert plain.stdout != adapted.stdout


def test_the_demo_streams_to_stdout_and_tells_its_speed_on_stderr():
    done = ask("What is a LoRA adapter?", "--model", "demo", "--max-new-tokens", "30")
    assert done.returncode == 0 and len(done.stdout.split()) > 3
    assert "tokens/s" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "LoRA adapter?" not in done.stdout, "the prompt is not part of the answer"


def test_work_that_the_first_token_does_not_need_follows_it():
    done: list[object] = []
    for token in with_a_break(iter([1, 2, 3]), lambda: done.append("work")):
        done.append(token)
    assert done == [1, "work", 2, 3]
    assert list(with_a_break(iter([]), lambda: done.append("in vain"))) == []
    assert "in vain" not in done


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([], "7 prompt tokens; 0 new"),
        ([2.5, 4.0], "7 prompt tokens, first new one after 0.50 s; 2 new"),
        ([2.5, 4.0, 4.5, 5.0], "7 prompt tokens, first new one after 0.50 s; 4 new, 2.0 tokens/s"),
    ],
)
def test_how_fast_it_was_is_said_of_any_model(times, said):
    """Seen to fail when the dtype was looked up in a head that has an adapter around it."""
    model = tiny_llama(tie_word_embeddings=False)
    add_lora(model, LoRAConfig(rank=2, targets=["lm_head"]))
    assert speed(2.0, times, 7, model) == f"{said} (float32 on cpu)"


def test_a_lack_of_memory_is_told_in_words(monkeypatch):
    """Of what the model takes for its second token, in PyTorch's own words."""

    def too_much(*arguments: object) -> torch.Tensor:
        return torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(answering, "arrange_for_answers", too_much)
    with pytest.raises(ValueError, match="demo does not fit into the memory of the device; try"):
        app.ask.ask(app.ask.AskConfig(prompt="hello", model="demo"))


def test_another_error_while_answering_is_a_bug_and_keeps_its_traceback(monkeypatch):
    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(answering, "arrange_for_answers", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        app.ask.ask(app.ask.AskConfig(prompt="hello", model="demo"))


def test_a_seed_fixes_what_is_drawn_and_dashes_are_underscores():
    flags = ("Tell me a story.", "--temperature", "1", "--max_new_tokens", "20", "--seed")
    first, again, other = (ask(*flags, seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_real_model_answers_from_a_folder_and_from_the_hub(assets, tmp_path):
    """The same answer from a local folder, from a small Hub, and from its cache without network."""
    folder = assets / "smollm2-135m-instruct"
    flags = ("What is the capital of France?", "--dtype", "fp32", "--model")
    assert ask(*flags, str(folder)).stdout == "The capital of France is Paris.\n"
    with hub({"someone/SmolLM2": folder}) as server:
        env = server.environment(tmp_path)
        from_hub = ask(*flags, "someone/SmolLM2", env=env)
    assert from_hub.stdout == "The capital of France is Paris.\n", from_hub.stderr
    cached = ask(*flags, "someone/SmolLM2@main", env=env | {"HF_HUB_OFFLINE": "1"})
    assert cached.stdout == "The capital of France is Paris.\n", cached.stderr
