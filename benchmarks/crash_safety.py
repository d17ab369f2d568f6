"""What is left of a run that is killed while it saves, here and with transformers' Trainer.

    python -m benchmarks.crash_safety [--quick]

Both train a small LoRA for 15 steps, save every 5, and are killed (SIGKILL) while they save step
10: the Trainer as each of its checkpoint's eight files appears, this project at each of the eight
operations by which a checkpoint is made. Then the run is resumed as the documentation says, by
`resume_from_checkpoint=True` and by `--resume`. A second table damages a checkpoint that was saved
whole. Right is only a run that ends in the very bits of one that nothing happened to.

Every case is a process of its own, forked from this one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers

import train

STEPS, SAVE_EVERY, KILLED_AT = 15, 5, 10
POINTS = 8


# --- the two sides -------------------------------------------------------------------------------


class Trainer:
    """The Trainer of transformers with an adapter of peft, on a random Llama."""

    name = "Trainer"
    files = ("adapter_model.safetensors", "optimizer.pt")
    damages = (
        ("100 bytes of the adapter are zero", "adapter_model.safetensors", "zero"),
        ("the optimizer's file is cut short", "optimizer.pt", "cut"),
        ("the optimizer's file is gone", "optimizer.pt", "remove"),
        ("the schedule's file is gone", "scheduler.pt", "remove"),
        ("the random generators' file is gone", "rng_state.pth", "remove"),
    )

    @staticmethod
    def run(folder: Path, resume: bool) -> None:
        """Trains, or goes on with what is in the folder."""
        transformers.set_seed(0)
        shape = transformers.LlamaConfig(
            vocab_size=200,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        model = peft.get_peft_model(
            transformers.LlamaForCausalLM(shape),
            peft.LoraConfig(r=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]),
        )
        ids = torch.randint(200, (60, 24), generator=torch.Generator().manual_seed(0)).tolist()
        settings = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            save_steps=SAVE_EVERY,
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=model,
            args=settings,
            train_dataset=[{"input_ids": row, "labels": row} for row in ids],
            data_collator=transformers.default_data_collator,
        )
        trainer.train(resume_from_checkpoint=resume or None)

    @staticmethod
    def checkpoint(folder: Path, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return folder / f"checkpoint-{step}"

    @staticmethod
    def kill_at(folder: Path, point: int) -> None:
        """Kills this process when the checkpoint has so many files."""
        checkpoint = Trainer.checkpoint(folder, KILLED_AT)

        def watch() -> None:
            while True:
                with contextlib.suppress(OSError):
                    if len(os.listdir(checkpoint)) >= point:
                        os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.0001)

        sys.setswitchinterval(0.0001)
        threading.Thread(target=watch, daemon=True).start()


class Here:
    """This project's train.py, on its demo."""

    name = "here"
    files = ("adapter_model.safetensors", "optimizer.safetensors")
    damages = (
        ("100 bytes of the adapter are zero", "adapter_model.safetensors", "zero"),
        ("the optimizer's file is cut short", "optimizer.safetensors", "cut"),
        ("the optimizer's file is gone", "optimizer.safetensors", "remove"),
        ("the file with step and loss scale is gone", "state.json", "remove"),
        ("the manifest is gone", "manifest.json", "remove"),
    )

    @staticmethod
    def run(folder: Path, resume: bool) -> None:
        """Trains, or goes on with what is in the folder."""
        words = "--demo --batch-size 2 --max-length 64 --lora-dropout 0.1 --eval-size 0"
        words += f" --eval-every 0 --max-steps {STEPS} --save-every {SAVE_EVERY}"
        more = ["--output", str(folder)] + ["--resume"] * resume
        if train.command([*words.split(), *more]):
            raise SystemExit("refused")

    @staticmethod
    def checkpoint(folder: Path, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return folder / "checkpoints" / f"step-{step:06d}"

    @staticmethod
    def kill_at(folder: Path, point: int) -> None:
        """Kills this process before an operation on the checkpoint's folder or on a file in it.

        They are one mkdir, five files, one rename; the eighth is whatever comes next.
        """
        name = Here.checkpoint(folder, KILLED_AT).name
        done = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal done
            is_write = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
            is_operation = is_write or event in ("os.mkdir", "os.rename")
            if done == POINTS - 1 or (is_operation and name in str(arguments[0])):
                done += 1
                if done == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)


SIDES = (Trainer, Here)


# --- what is done to them ------------------------------------------------------------------------


def forked(action: Callable[[], None], log: Path) -> int:
    """Runs an action in a process of its own; returns its exit status, or minus the signal."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            action()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def bits(side: type, folder: Path) -> str:
    """A hash of the last checkpoint's adapter and optimizer."""
    last = side.checkpoint(folder, STEPS)
    return hashlib.sha256(b"".join((last / name).read_bytes() for name in side.files)).hexdigest()


def outcome(side: type, folder: Path, log: Path, expected: str) -> tuple[bool, str]:
    """Resumes a run; returns whether all is well, and what came of it in words."""
    if forked(lambda: side.run(folder, True), log):
        said = log.read_text().strip().splitlines()[-1].replace(f"{folder}/", "")
        return False, f"crashed: {said[:100]}"
    try:
        is_right = bits(side, folder) == expected
    except FileNotFoundError:
        return False, "ended without a checkpoint"
    return is_right, "resumed, same bits" if is_right else "resumed silently, another result"


def killed_runs(side: type, place: Path, expected: str, points: list[int]) -> list[tuple]:
    """One row for each point at which a save is cut off."""
    rows = []
    for point in points:
        folder = place / f"{side.name}-killed-{point}"

        def run(folder: Path = folder, point: int = point) -> None:
            side.kill_at(folder, point)
            side.run(folder, False)

        ended = forked(run, place / "log")
        assert ended == -signal.SIGKILL, (side.name, point, ended, (place / "log").read_text())
        rows.append(outcome(side, folder, place / "log", expected))
    return rows


def damaged_runs(side: type, place: Path, whole: Path, expected: str) -> list[tuple]:
    """One row for each damage to a checkpoint that the run then resumes from."""
    rows = []
    for number, (_, name, how) in enumerate(side.damages):
        folder = place / f"{side.name}-damaged-{number}"
        shutil.copytree(whole, folder)
        shutil.rmtree(side.checkpoint(folder, STEPS))
        damage(side.checkpoint(folder, KILLED_AT) / name, how)
        rows.append(outcome(side, folder, place / "log", expected))
    return rows


def damage(file: Path, how: str) -> None:
    """Does to a file what a full or a failing disk does."""
    content = file.read_bytes()
    middle = len(content) // 2
    if how == "remove":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:middle])
    else:
        file.write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two kills: only see that it works")
    points = [1, POINTS] if parser.parse_args().quick else list(range(1, POINTS + 1))
    versions = f"transformers {transformers.__version__}, peft {peft.__version__}"
    print(f"{versions}, torch {torch.__version__}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = temporary
        kills, damages = {}, {}
        for side in SIDES:
            whole = place / side.name
            status = forked(lambda s=side, w=whole: s.run(w, False), place / "log")
            assert status == 0, (place / "log").read_text()
            expected = bits(side, whole)
            kills[side.name] = killed_runs(side, place, expected, points)
            damages[side.name] = damaged_runs(side, place, whole, expected)
    print(f"\n| killed at | {' | '.join(kills)} |\n|---|---|---|")
    for point, row in zip(points, zip(*kills.values(), strict=True), strict=True):
        print(f"| {point} of {POINTS} | {' | '.join(text for _, text in row)} |")
    for name, rows in kills.items():
        print(f"{name}: {sum(ok for ok, _ in rows)} of {len(rows)} runs go on")
    for side in SIDES:
        print(f"\n| damaged, {side.name} | what comes of it |\n|---|---|")
        for (what, _, _), (_, text) in zip(side.damages, damages[side.name], strict=True):
            print(f"| {what} | {text} |")


if __name__ == "__main__":
    main()
