"""What export.py --push puts on the Hub, downloaded again.

With the real huggingface_hub client against the small Hub of hub_server.py; about 30 seconds.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, random_tokens
from hub_client import fetch
from hub_server import Hub
from hub_uploads import WriteFault
from uploads import TOKEN, content

from data.snapshot import Snapshot
from lora.adapter import load_adapter
from lora.config import BaseModel, LoRAConfig
from model.attention import Packed
from model.llama import Llama
from model.weights import load_model
from publish.curve import draw_curve, smoothed
from publish.push import public_base, public_files
from publish.source import Source

ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "loss.png"}
IDS = random_tokens(40, vocab_size=400)


def export(server: Hub, place: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    """Runs export.py, which never shows the token."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "export.py"), *arguments],
        cwd=place,
        env=server.environment(place / "home", **{"HF_TOKEN": TOKEN} | more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


def push(server: Hub, place: Path, repo: str, *more: str) -> str:
    """Pushes the run of that place; returns what is printed."""
    done = export(server, place, "run", "--push", repo, *more)
    assert done.returncode == 0, done.stderr
    assert f"published: {server.url}/{repo}\n" in done.stdout
    return done.stdout


def refusal(server: Hub, place: Path, *arguments: str, **more: str) -> str:
    """What is said instead of pushing, which is one line and changes nothing."""
    commits = list(server.files)
    done = export(server, place, "run", *arguments, **more)
    assert done.returncode == 2 and done.stdout == "" and list(server.files) == commits
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.removeprefix("export.py: ")


@pytest.fixture
def place(trained, tmp_path) -> Path:
    """A working directory with a finished run and its base."""
    for name in ("model", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def tuned_model(place: Path, adapter: Path | None) -> Llama:
    model = load_model(place / "model", torch.float32, "cpu")
    if adapter:
        load_adapter(model, adapter)
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, Packed([len(IDS)]))


def test_an_adapter_is_there_with_card_and_picture_and_works_in_peft(place, alices_hub):
    """From a fresh download, byte for byte what was trained."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    push(alices_hub, place, "alice/it")
    pushed = content(alices_hub, "alice/it")
    assert pushed.keys() == ADAPTER
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert pushed[name] == (place / "run" / "adapter" / name).read_bytes()
    for text in (pushed["README.md"], pushed["adapter_config.json"]):
        assert str(place).encode() not in text and TOKEN.encode() not in text
    assert "alice/it" not in alices_hub.private

    code = "import huggingface_hub as h; print(h.snapshot_download('alice/it'), end='')"
    environment = alices_hub.environment(place / "another home")
    folder = Path(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
    ours = logits(tuned_model(place, folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "model").eval()
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS[None]).logits[0], ours, atol=1e-5)
    assert not torch.allclose(logits(tuned_model(place, None)), ours, atol=1e-5)


def test_a_repeated_push_is_no_commit_and_leaves_other_files_alone(place, alices_hub):
    """Seen to fail when the picture held the time at which it was drawn."""
    push(alices_hub, place, "alice/it", "--private")
    pushed = alices_hub.files[alices_hub.refs["models/alice/it"]["main"]]
    between = alices_hub.commit("alice/it", pushed | {"note.txt": alices_hub.keep(b"mine")})
    push(alices_hub, place, "alice/it", "--private")
    assert alices_hub.refs["models/alice/it"]["main"] == between
    assert pushed.keys() == ADAPTER | {".gitattributes"} and "alice/it" in alices_hub.private


def test_a_merged_model_is_there_and_works_from_a_fresh_download(place, alices_hub):
    """With the weights of an earlier push gone, which would be taken for these.

    Seen to fail when they stayed: model.safetensors wins over an index of shards.
    """
    old = {"model.safetensors": alices_hub.keep(b"old"), "note": alices_hub.keep(b"mine")}
    alices_hub.commit("alice/it", old)
    push(alices_hub, place, "alice/it", "--merged", "--max-shard-size", "100KB")
    pushed = content(alices_hub, "alice/it")
    assert {"README.md", "loss.png", "config.json", "tokenizer.json", "note"} <= pushed.keys()
    assert "model.safetensors" not in pushed and "model.safetensors.index.json" in pushed
    assert not {name for name in pushed if name.startswith("adapter")}
    assert yaml.safe_load(pushed["README.md"].split(b"---\n")[1])["library_name"] == "transformers"
    (result,) = fetch(alices_hub, place / "another home", "alice/it")
    merged = load_model(result.folder, torch.float32, "cpu").eval()
    tuned = logits(tuned_model(place, place / "run" / "adapter"))
    assert torch.allclose(logits(merged), tuned, atol=1e-5)


def test_licences_come_from_the_hub_and_their_lack_stops_nothing(place, alices_hub):
    """Seen to fail when an unanswered question for a licence ended the push."""
    commit = alices_hub.publish("lab/talk", place / "model", kind="datasets")
    alices_hub.cards["datasets/lab/talk"] = {"license": ["cc-by-4.0"]}
    data = json.loads((place / "run" / "data.json").read_text())
    hub_set = data["sources"][0] | {"name": "lab/talk", "revision": commit}
    gone = hub_set | {"name": "lab/gone"}
    data["sources"] = [*data["sources"], hub_set, gone]
    (place / "run" / "data.json").write_text(json.dumps(data))
    push(alices_hub, place, "alice/it")
    lines = content(alices_hub, "alice/it")["README.md"].decode().splitlines()
    rows = {row.split("|")[1].strip(" `"): row for row in lines if row.count("|") == 7}
    assert rows["lab/talk"].endswith("| `cc-by-4.0` |")
    assert rows["lab/gone"].endswith("| not asked |")
    assert str(place) not in "\n".join(lines)


def test_what_cannot_be_pushed_is_one_line_and_nothing_is_made(place, alices_hub):
    """An adapter among a model's files is loaded with them, or instead of them."""
    words = refusal(alices_hub, place, "--push", "alice/it", HF_TOKEN="")
    assert words.startswith("you are not logged in: make a token that may write at ")
    alices_hub.commit("alice/model", {"model.safetensors": alices_hub.keep(b"")})
    words = refusal(alices_hub, place, "--push", "alice/model")
    assert f"{alices_hub.url}/alice/model holds a whole model, which programs would" in words


def test_a_push_that_breaks_off_is_repeated_without_harm(place, alices_hub):
    alices_hub.write_faults = {"commit": [WriteFault(500)]}
    done = export(alices_hub, place, "run", "--push", "alice/it")
    assert done.returncode == 2 and "cannot be reached now (it answered 500)" in done.stderr
    assert "run the same command again" in done.stderr and not content(alices_hub, "alice/it")
    push(alices_hub, place, "alice/it")
    assert content(alices_hub, "alice/it").keys() == ADAPTER
    assert len(alices_hub.asked_for("/lfs/", "PUT")) == 2  # weights and picture, once each


@pytest.mark.parametrize(
    ("name", "revision", "public"),
    [
        ("/home/me/llama", None, BaseModel("llama", None, "ab")),
        ("../llama", "c" * 40, BaseModel("llama", None, "ab")),
        ("lab/llama", None, BaseModel("lab/llama", None, "ab")),
        ("lab/llama", "c" * 40, BaseModel("lab/llama", "c" * 40, "ab")),
        ("demo", None, BaseModel("demo", None, "ab")),
        (None, None, BaseModel("model", None, "ab")),
    ],
)
def test_a_base_has_no_path_in_public(name, revision, public, place):
    """Seen to fail when the name was left as another program had written it."""
    local = Snapshot(place / "model", str(place / "model"), None)
    base = BaseModel(name, revision, "ab")
    assert public_base(Source(place, LoRAConfig(), base, local, None)) == public
    known = Snapshot(place / "model", "hub/llama", "d" * 40)
    found = public_base(Source(place, LoRAConfig(), base, known, None))
    is_id = name is not None and name.startswith("lab/")
    assert found == (public if is_id else BaseModel("hub/llama", "d" * 40, "ab"))


def test_another_programs_adapter_is_pushed_with_the_name_of_its_base_changed_only(place):
    """Seen to fail when more of its configuration was written anew."""
    file = place / "run" / "adapter" / "adapter_config.json"
    raw = json.loads(file.read_text()) | {"peft_version": "0.21", "lora_alpha": 3}
    file.write_text(json.dumps(raw | {"base_model_name_or_path": "/home/me/llama"}))
    pushed = public_files(file.parent, BaseModel("lab/llama", "c" * 40))
    names = {"base_model_name_or_path": "lab/llama", "revision": "c" * 40}
    assert json.loads(pushed["adapter_config.json"]) == raw | names


def test_the_picture_shows_three_curves_and_is_the_same_every_time():
    """A picture without losses is none. Seen to fail when a step without a loss was drawn."""
    image = pytest.importorskip("matplotlib.image")
    records = [{"step": step, "loss": 3 / (1 + step / 9)} for step in range(1, 60)]
    records[10]["loss"] = None
    records += [{"step": step, "eval_loss": 2.5 - step / 40} for step in (0, 30, 59)]
    picture = draw_curve(records)
    assert picture == draw_curve(records) and draw_curve([{"step": 0, "eval_loss": 1.0}]) is None
    pixels = image.imread(io.BytesIO(picture), format="png")[..., :3]
    for color in ((0x08, 0x51, 0x9C), (0xD9, 0x48, 0x01), (0x9E, 0xCA, 0xE1)):
        distance = abs(pixels * 255 - torch.tensor(color).numpy()).max(axis=-1)
        assert (distance < 2).sum() > 50, color
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
