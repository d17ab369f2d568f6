"""Fine-tunes Llama 3.2 with LoRA.

    python train.py --lr 2e-4                         # Llama-3.2-1B-Instruct on FineTome-100k
    python train.py --demo --lr 2e-4                  # a tiny model, a minute on two CPU cores
    python train.py --lr 2e-4 --resume                # go on where it stopped, or start
    torchrun --nproc-per-node=4 train.py --lr 2e-4    # four GPUs, the same result

`main` is the table of contents; the functions follow in the order in which it calls them. Behind
them are the settings (lora/train_config.py), the parts of a run (run.py), the forward pass
(model/llama.py), the adapter (lora/layer.py), the loss (model/loss.py), what a step trains on
(data/batches.py), and what is saved (lora/checkpoint.py).
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from data.command_line import given_flags, run_command
from lora.train_config import TrainConfig

if __name__ == "__main__":  # before PyTorch is there: nobody should wait for it to read --help
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, just end
    given_flags(TrainConfig, sys.argv[1:], "train.py", __doc__)

import torch
from torch import Tensor, nn

from data.batches import MicroBatch, conversations_of_step, pack, steps_per_epoch
from data.training_data import Selection
from lora.checkpoint import checkpoint_files, trainable
from lora.progress import Step, StepBar, in_words, summary, time_left
from lora.schedule import learning_rate
from model.attention import Packed
from model.device import is_out_of_memory
from model.generate import generate_batch
from model.generation_config import SamplingConfig
from model.llama import Llama
from model.loss import summed_cross_entropy
from model.memory import peak_bytes
from model.sampling import Sampler
from run import Run, announce, evaluating, prepare, result, resume

OUT_OF_MEMORY = (
    "the device has not enough memory: lower --micro-batch-tokens, or add "
    "--checkpoint-activations on; with --resume too it goes on from the last checkpoint"
)
STOPPED_BY_OTHERS = 1  # the exit status where the signal reached another process
NOT_BACKED_UP = 3  # the exit status of a run that is done, but only here
LONGEST_SAMPLE = 96  # tokens
MOST_BROKEN_STEPS = 10  # in a row with gradients that are not finite: more will not help


def main(given: Mapping[str, Any]) -> int:
    """One run, from nothing or from a checkpoint to an adapter; returns the exit status."""
    started = time.perf_counter()
    run = prepare(given)
    done = resume(run)
    announce(run)
    with run.interrupt, run.backup:
        done = train(run, done)
        save(run, done)
        is_stopped = run.is_asked_to_stop()
        if not is_stopped:
            for line in run.folder.publish_adapter(result(run)):
                run.world.print(line)
        trouble = run.backup.finish(lambda: is_stopped or bool(run.interrupt.signal))
        is_only_here = run.world.any(bool(trouble))  # until then the others wait for the main one
    run.world.close()
    if trouble:
        run.world.print(f"step {done} is only here, and not in {run.config.backup}: {trouble}")
    if is_stopped:
        run.world.print(f"stopped after step {done} of {run.steps}, all saved in {run.folder.path}")
        run.world.print("the same command with --resume goes on from there")
        return run.interrupt.exit_status or STOPPED_BY_OTHERS
    records, peak = run.folder.records(), peak_bytes(run.world.device)
    seconds = time.perf_counter() - started
    run.world.print(summary(records, seconds, peak, run.folder.adapter, run.config.model))
    return NOT_BACKED_UP if is_only_here else 0


def train(run: Run, done: int) -> int:
    """Takes the steps from `done` on; returns how many are done in the end."""
    config, first, broken = run.config, done, 0
    if done == 0 and run.steps > 0:
        run.world.print(time_left(rough_seconds(run), run.world.device.type, "one conversation"))
    if run.steps > 0 and not run.was_evaluated(done):
        evaluate_if_due(run, done)
    started = time.perf_counter()
    with closing(StepBar(run.steps, done, run.folder.losses(), run.world.is_main)) as bar:
        while done < run.steps:
            step = train_step(run, done)
            if step is None:
                break
            if not step.is_finite and run.scaler.is_enabled() and run.scaler.get_scale() >= 1:
                continue  # too large for float16, not wrong: the same step again, scaled less
            broken = 0 if step.is_finite else broken + 1
            if broken == MOST_BROKEN_STEPS:
                raise ValueError(
                    f"gradients were not finite in {broken} steps in a row; the last good one was "
                    f"step {done + 1 - broken}: start another run with a lower --lr"
                )
            done += 1
            log_step(run, done, step)
            lr = learning_rate(done - 1, run.steps, config)
            trouble = f"{broken} steps left out: not finite" if broken else run.backup.status
            bar.update(step, lr, trouble)
            for line in run.backup.take_news():
                run.world.note(line)
            if done == first + 3:
                seconds = (time.perf_counter() - started) / 3 * (run.steps - done)
                run.world.note(time_left(seconds, run.world.device.type, "the first steps"))
            evaluate_if_due(run, done)
            if done % config.save_every == 0 and done < run.steps:
                save(run, done)
    return done


def train_step(run: Run, step: int) -> Step | None:
    """Step number `step`, from 0. All that it does follows from the seed, `step` and the state.

    None if a process was asked to stop: then the step is not taken, and all is as before it.
    """
    started = time.perf_counter()
    config, known = run.config, run.data.train
    dropout_seed = (config.seed * 1_000_003 + step) * 1_009 + run.world.rank
    torch.manual_seed(dropout_seed % 2**63)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, run.steps, config)
    numbers = conversations_of_step(run.data.mixture, config.batch_size, config.seed, step)

    loss, norm = gradients(run, micro_batches(run, known, numbers))
    if run.is_asked_to_stop():  # and maybe there are gradients of a part of the step only
        run.optimizer.zero_grad()
        return None
    loss, norm = torch.stack([loss, norm]).tolist()  # alone, we wait for the device only here
    if math.isfinite(norm) or run.scaler.is_enabled():  # a scaler leaves a bad step out itself
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.optimizer.zero_grad()

    tokens, targets = known.lengths[numbers].sum(), known.target_counts[numbers].sum()
    return Step(loss, norm, int(tokens), int(targets), time.perf_counter() - started)


def micro_batches(run: Run, conversations: Selection, numbers: Sequence[int]) -> list[MicroBatch]:
    """This process's share of the conversations with these numbers, packed, if it has targets."""
    lengths = conversations.lengths[numbers]
    packs = pack(lengths.tolist(), run.micro_batch_tokens, run.world.size)
    mine = packs[run.world.rank :: run.world.size]
    batches = [
        MicroBatch.of([conversations[numbers[place]] for place in places]) for places in mine
    ]
    return [batch for batch in batches if len(batch.targets)]


def gradients(run: Run, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
    """Leaves the step's gradients in the weights; returns its loss and their norm before clipping.

    The loss is the mean over the target tokens of the whole step, wherever they are computed: first
    they are counted, then every micro-batch's sum is divided by that one number. The mean of the
    micro-batches' means would be something else, since it counts a token for more the fewer stand
    beside it.
    """
    world, weights = run.world, [p for _, p in trainable(run.model)]
    counts = torch.tensor(sum(len(batch.targets) for batch in batches), device=world.device)
    num_targets = world.sum(counts).clamp(min=1)
    loss = torch.zeros((), device=world.device)
    for batch in batches:
        if run.interrupt.signal:
            break  # the others wait for us below, and then nobody takes the step
        batch_loss = summed_loss(run.model, batch.to(world.device)) / num_targets
        run.scaler.scale(batch_loss).backward()  # gradients add up over the micro-batches
        loss += batch_loss.detach()
    world.sum_gradients(weights)
    run.scaler.unscale_(run.optimizer)
    return world.sum(loss), nn.utils.clip_grad_norm_(weights, run.config.grad_clip)


def summed_loss(model: Llama, batch: MicroBatch) -> Tensor:
    """Cross-entropy in nats, summed over the micro-batch's targets; only they get logits."""
    hidden = model.model(batch.tokens, Packed(batch.lengths), batch.before_target)
    return summed_cross_entropy(hidden, model.lm_head.weight, batch.targets)


def log_step(run: Run, done: int, step: Step) -> None:
    """Writes a step down."""
    per_epoch = steps_per_epoch(run.data.mixture, run.config.batch_size)
    run.folder.log(
        step=done,
        epoch=round(done / per_epoch, 6),
        loss=step.loss if step.is_finite else None,
        lr=learning_rate(done - 1, run.steps, run.config),
        grad_norm=step.grad_norm if step.is_finite else None,
        tokens=step.tokens,
        target_tokens=step.target_tokens,
        tokens_per_second=round(step.speed, 1),
        seconds=round(step.seconds, 4),
        peak_memory_bytes=peak_bytes(run.world.device),
    )


def rough_seconds(run: Run) -> float:
    """How long the steps will take, by one conversation, whose gradients are thrown away."""
    lengths = run.data.train.lengths
    middle = int(abs(lengths - lengths.mean()).argmin())
    batch = MicroBatch.of([run.data.train[middle]]).to(run.world.device)
    weights = [p for _, p in trainable(run.model)]
    for _ in range(2):  # the first time, much is set up
        started = time.perf_counter()
        summed_loss(run.model, batch).backward()
        nn.utils.clip_grad_norm_(weights, 1.0).item()  # waits for the device
        run.optimizer.zero_grad()
    return (time.perf_counter() - started) * run.config.batch_size * run.steps / run.world.size


def evaluate_if_due(run: Run, done: int) -> None:
    """Evaluates the model and asks it something, if that is due after `done` steps.

    Nothing is logged if the run is asked to stop meanwhile; it is done again when the run goes on.
    """
    config, records = run.config, []
    for action, every in (
        (evaluate, config.eval_every),
        (sample, config.eval_every if config.sample_every is None else config.sample_every),
    ):
        if every and (done % every == 0 or done == run.steps):
            with evaluating(run.model):
                records += action(run)
    if run.is_asked_to_stop():
        return
    for record in records:
        run.folder.log(step=done, **record)
        run.world.note(f"step {done}: {in_words(record)}")


def evaluate(run: Run) -> list[dict[str, Any]]:
    """The mean loss over all target tokens of the held-out conversations, for the log."""
    held_out, everything = run.data.held_out, range(len(run.data.held_out))
    if not everything:
        return []
    total = torch.zeros(2, device=run.world.device)
    for batch in run.world.watched(micro_batches(run, held_out, everything), "evaluating"):
        if run.interrupt.signal:
            break
        total[0] += summed_loss(run.model, batch.to(run.world.device))
        total[1] += len(batch.targets)
    loss, count = run.world.sum(total).tolist()
    return [{"eval_loss": loss / max(count, 1), "eval_target_tokens": int(count)}]


def sample(run: Run) -> list[dict[str, Any]]:
    """What the model answers to the sample prompts, always taking the likeliest token."""
    samplers = [Sampler(SamplingConfig(), device=run.world.device) for _ in run.prompts]
    answers = generate_batch(
        run.model,
        run.prompts,
        samplers,
        run.stop_ids,
        LONGEST_SAMPLE,
        lambda: bool(run.interrupt.signal),
    )
    texts = [run.tokenizer.decode(ids) for ids in answers]
    pairs = zip(run.config.sample_prompts, texts, strict=True)
    return [{"prompt": prompt, "sample": text} for prompt, text in pairs]


def save(run: Run, done: int) -> None:
    """Publishes a checkpoint after `done` steps, drops the oldest, and has it copied elsewhere."""
    files = checkpoint_files(done, run.model, run.config.lora, run.base, run.optimizer, run.scaler)
    files |= run.folder.own_files()
    for line in run.folder.publish_checkpoint(done, files, run.config.keep):
        run.world.note(line)
    run.backup.copy(done, files)


def command(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    given = given_flags(TrainConfig, arguments, "train.py", __doc__)
    status = 0

    def start() -> None:
        nonlocal status
        try:
            status = main(given)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise ValueError(OUT_OF_MEMORY) from None
            raise

    return run_command("train.py", start) or status


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
