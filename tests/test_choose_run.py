"""Which folder a command line means, and which checkpoints stay in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora.choose_run import choose_config, choose_folder, default_name, newest_run
from lora.run_folder import CONFIG, METRICS, RunFolder, free_name
from lora.train_config import TrainConfig


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(path: str, written: float) -> Path:
    """A run that did something last at this time."""
    folder = Path(path)
    folder.mkdir(parents=True)
    for name, content in ((CONFIG, '{"lr": 0.5}'), (METRICS, "")):
        (folder / name).write_text(content)
        os.utime(folder / name, (written, written))
    return folder


def chosen(**given) -> Path:
    return choose_folder(given, writes=True).path


@pytest.mark.parametrize(
    "model, data, name",
    [
        ("owner/Llama-3.2-1B", ("other/FineTome-100k",), "Llama-3.2-1B-FineTome-100k"),
        ("demo", ("demo",), "demo-demo"),
        ("./folder/m/", ("a/rows.jsonl", "b/more.parquet", "c.json"), "m-rows-more-c"),
        ("a b", ("x?.jsonl",), "a_b-x_"),
        ("..", (".hidden.json",), "local-hidden"),
    ],
)
def test_a_run_is_called_after_model_and_data(model, data, name):
    assert default_name(TrainConfig(model=model, data=data)) == name


def test_a_taken_name_gets_the_next_free_number():
    assert free_name(Path("runs/a")) == Path("runs/a")
    for number, name in enumerate(("a", "a-2", "a-3", "a-10")):
        made(f"runs/{name}", number)
    assert free_name(Path("runs/a")) == Path("runs/a-4")
    assert chosen(model="x", data=("y",)) == Path("runs/x-y")


def test_the_newest_run_is_the_one_that_did_something_last_of_its_name():
    made("runs/a", 30)
    made("runs/a-2", 50)
    made("runs/a-10", 40)
    made("runs/a-b", 90)
    made("runs/ab", 80)
    (Path("runs") / "a-3").mkdir()  # holds nothing
    assert newest_run(Path("runs/a")) == Path("runs/a-2")
    assert newest_run(Path("runs/*")) == Path("runs/a-b")
    assert newest_run(Path("runs/c")) is None and newest_run(Path("nowhere/*")) is None


def test_resume_goes_on_with_the_run_that_is_named_and_else_with_the_newest():
    made("runs/x-y", 1)
    made("runs/x-y-2", 2)
    made("runs/other", 3)
    made("elsewhere", 4)
    assert chosen(resume=True, output="elsewhere") == Path("elsewhere")
    assert chosen(resume=True, output="nothing/yet") == Path("nothing/yet")
    assert chosen(resume=True) == chosen(resume=True, keep=2) == Path("runs/other")
    assert chosen(resume=True, lr=0.5) == Path("runs/Llama-3.2-1B-Instruct-FineTome-100k")
    assert chosen(resume=True, model="x", data=("y",)) == Path("runs/x-y-2")


def test_a_run_goes_on_with_its_own_settings_and_refuses_others():
    folder = made("runs/x-y", 1)
    saved = RunFolder(folder, writes=False).saved_config()
    assert choose_config({"resume": True}, saved, folder).lr == 0.5
    assert choose_config({"lr": 0.25}, {}, folder).lr == 0.25
    with pytest.raises(ValueError, match="runs/x-y was trained with other settings: --model "):
        choose_config({"resume": True, "model": "x"}, saved, folder)


def test_a_process_that_only_trains_along_makes_and_locks_nothing(here):
    folder = RunFolder(made("runs/a", 1), writes=False)
    folder.check_free()
    folder.open({}, {}, 0)
    folder.log(step=1)
    folder.publish_checkpoint(1, {"a": b""}, keep=1)
    folder.publish_adapter({"a": b""})
    assert sorted(os.listdir("runs/a")) == [CONFIG, METRICS]


def test_only_the_newest_are_kept_in_the_order_of_numbers_and_nothing_else_is_touched(here):
    run = RunFolder(Path("run"), writes=True)
    run.open({}, {}, 0)
    (run.checkpoints / "mine").mkdir()
    (run.checkpoints / "step-1").touch()
    for step in (9, 10, 100, 999_999, 1_000_000):
        run.publish_checkpoint(step, {"a": b"x"}, keep=2)
    assert run.saved_steps() == [999_999, 1_000_000]
    assert sorted(os.listdir(run.checkpoints)) == ["mine", "step-1", "step-1000000", "step-999999"]
    run.lock.close()
