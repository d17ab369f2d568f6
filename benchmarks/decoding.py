"""The speed of answers, one at a time and many at once, against transformers and llama.cpp.

    python -m benchmarks.decoding tokens               # new tokens after a prompt of 128
    python -m benchmarks.decoding first                # the first after a prompt of 512
    python -m benchmarks.decoding history              # turn 10 of a conversation against turn 1
    python -m benchmarks.decoding adapter              # with an adapter that is not merged
    python -m benchmarks.decoding batch                # 16 prompts at once
    python -m benchmarks.decoding tokens --quick       # only see that it works

Random weights of the real shapes, bfloat16. First the sides' scores are compared; then they answer
in turns, llama.cpp in a process of its own. Printed are medians of wall and CPU milliseconds, and
how many times ours the others take. Of new tokens there is a row for the limit: reading the
weights, once a token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.decoders import (
    LlamaCpp,
    WeightsOf,
    arranged,
    here,
    transformers_model,
    transformers_side,
)
from benchmarks.peers import Setting, random_llama
from lora.answering import arrange_lora_for_answers
from lora.inject import lora_disabled, remove_lora
from model.answering import arrange_for_answers
from model.generate import extend, generate_batch, new_cache, stream
from model.llama import Llama
from model.sampling import Sampler, SamplingConfig

Work = Callable[[], object]
# What rounding allows: of the scores, relative to their size, and of the logarithm of the likeliest
# token's probability. At the 1B shape bfloat16 is off from float32 by 0.027 here and by 0.028 in
# transformers, and that logarithm by 0.08 and 0.02.
SCORES = {"transformers": 0.05, "here int8": 0.08}
LOG_PROBABILITY = 0.15


def main() -> None:
    """Prints the table."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting(
        "tiny" if args.quick else args.shape, "full", torch.bfloat16, layers=args.layers
    )
    model = random_llama(setting)
    works = {"tokens": tokens, "first": tokens, "history": history, "adapter": adapter}
    with tempfile.TemporaryDirectory() as place:
        sides, share = (works | {"batch": batch})[args.work](args, setting, model, Path(place))
        print(f"{args.work}, {setting.shape}, {torch.get_num_threads()} threads", end="")
        print(f", medians of {args.repeats}, ms{' a token' if share > 1 else ''}")
        times = in_turns(sides, args.repeats)
    print(f"{'':18} {'wall':>9} {'CPU':>9} {'times':>7} {'CPU':>7}")
    first = next(iter(times.values()))
    for name, (wall, cpu) in times.items():
        shown = f"{wall / share * 1e3:9.2f} {cpu / share * 1e3:9.2f}"
        print(f"{name:18} {shown} {wall / first[0]:7.3f} {cpu / first[1]:7.3f}", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", choices=("tokens", "first", "history", "adapter", "batch"))
    parser.add_argument("--shape", default="1b", choices=("1b", "135m", "tiny"))
    parser.add_argument("--layers", type=int, help="only so many")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a tiny shape: only see that it works")
    args = parser.parse_args()
    if args.quick:
        args.new = 4
    return args


def tokens(
    args: argparse.Namespace, setting: Setting, model: Llama, place: Path
) -> tuple[dict[str, tuple[Work, Work | None]], int]:
    """Each side's answer, less what its prompt takes; or what the first token takes."""
    ours, rounded = arranged(model), arranged(model, "int8")
    peer = transformers_model(setting, model)
    answers = {
        "here": here(ours),
        "here int8": here(rounded),
        "transformers": transformers_side(peer),
        "llama.cpp BF16": LlamaCpp(model, "bf16", place),
        "llama.cpp Q8_0": LlamaCpp(model, "q8_0", place),
    }
    prompt = random_prompt(128 if args.work == "tokens" else 512)
    compare(prompt, ours, rounded, peer, answers["llama.cpp BF16"])
    if args.work == "first":
        return {name: (lambda a=a: a(prompt, 1), None) for name, a in answers.items()}, 1
    found: dict[str, tuple[Work, Work | None]] = {
        name: (lambda a=a: a(prompt, 1 + args.new), lambda a=a: a(prompt, 1))
        for name, a in answers.items()
    }
    found["reading alone"] = (lambda: [read_weights(model) for _ in range(args.new)], None)
    return found, args.new


def read_weights(model: Llama) -> int:
    """Adds up all weights, eight bytes at a time: what a token takes if only memory counts."""
    weights = WeightsOf(model).tensors.values()
    return sum(int(weight.view(-1).view(torch.int64).sum()) for weight in weights)


def compare(
    prompt: list[int], ours: Llama, rounded: Llama, peer: torch.nn.Module, cpp: LlamaCpp
) -> None:
    """Makes sure that all sides give the prompt's next token the same scores."""
    with torch.inference_mode():
        scores = {
            "here": last_scores(ours, prompt),
            "here int8": last_scores(rounded, prompt),
            "transformers": peer(torch.tensor([prompt])).logits[0, -1].float(),
        }
    for name, bound in SCORES.items():
        off = float((scores[name] - scores["here"]).norm() / scores["here"].norm())
        assert off < bound, (name, off)
        print(f"scores of here and {name} differ by {off:.1e}")
    [theirs] = cpp.complete(prompt, 1)
    log_probability = float(scores["here"].log_softmax(-1)[theirs["id"]])
    assert abs(theirs["logprob"] - log_probability) < LOG_PROBABILITY, (theirs, log_probability)
    print(f"log probability: llama.cpp {theirs['logprob']:.4f}, here {log_probability:.4f}")


def last_scores(model: Llama, prompt: list[int]) -> torch.Tensor:
    """The scores of the token after a prompt; its last token passes alone, as new ones do."""
    cache = new_cache(model, 1, len(prompt))
    extend(model, cache, [prompt[:-1]])
    return extend(model, cache, [prompt[-1:]])[0].float()


def history(
    args: argparse.Namespace, setting: Setting, model: Llama, place: Path
) -> tuple[dict[str, tuple[Work, Work | None]], int]:
    """The first token of turn 1, and of turn 10, whose nine earlier turns are in the cache."""
    ours, words = arranged(model), random_prompt(1024)
    cache = new_cache(ours, 1, 1024)
    turn = 64

    def first_token(turns: int) -> None:
        cache.rewind(0, (turns - 1) * turn)
        next(stream(ours, words[: turns * turn], Sampler(SamplingConfig()), frozenset(), 8, cache))

    for turns in range(1, 11):
        first_token(turns)
    assert cache.tokens[0] == words[: 10 * turn], "the cache holds the ten turns"
    alone = new_cache(ours, 1, 1024)

    def first_turn() -> None:
        alone.rewind(0, 0)
        next(stream(ours, words[:turn], Sampler(SamplingConfig()), frozenset(), 8, alone))

    return {"turn 1": (first_turn, None), "turn 10": (lambda: first_token(10), None)}, 1


def adapter(
    args: argparse.Namespace, setting: Setting, model: Llama, place: Path
) -> tuple[dict[str, tuple[Work, Work | None]], int]:
    """Our own answers, an adapter of rank 16 on q, k, v and o switched off and on."""
    tuned = arrange_for_answers(model.eval())
    arrange_lora_for_answers(tuned)
    prompt, answer = random_prompt(128), here(tuned)

    def base(count: int) -> list[int]:
        with lora_disabled(tuned):
            return answer(prompt, count)

    with lora_disabled(tuned):
        plain = last_scores(tuned, prompt)
    assert (plain - last_scores(tuned, prompt)).norm() > 0.01 * plain.norm(), "it does nothing"
    return {
        "base": (lambda: base(1 + args.new), lambda: base(1)),
        "adapter": (lambda: answer(prompt, 1 + args.new), lambda: answer(prompt, 1)),
    }, args.new


def batch(
    args: argparse.Namespace, setting: Setting, model: Llama, place: Path
) -> tuple[dict[str, tuple[Work, Work | None]], int]:
    """16 prompts of 100 to 130 tokens, by the layers that train.py has: at once, one by one.

    The last row is what chat.py takes for them, one by one, by layers made for single tokens.
    """
    remove_lora(model)
    words = random_prompt(2048)
    prompts = [words[100 * i : 100 * i + 100 + 2 * i] for i in range(16)]

    def together() -> list[list[int]]:
        samplers = [Sampler(SamplingConfig()) for _ in prompts]
        return generate_batch(model.eval(), prompts, samplers, frozenset(), args.new)

    alone, in_chat = here(model.eval()), here(arranged(model))
    one_by_one = [alone(prompt, args.new) for prompt in prompts]
    same = sum(a[0] == b[0] for a, b in zip(together(), one_by_one, strict=True))
    assert same >= 15, f"only {same} of 16 first tokens are the same"
    print(f"{same} of 16 first tokens are the same")
    return {
        "at once": (together, None),
        "one by one": (lambda: [alone(prompt, args.new) for prompt in prompts], None),
        "one by one in chat": (lambda: [in_chat(prompt, args.new) for prompt in prompts], None),
    }, 1


def random_prompt(count: int) -> list[int]:
    """Some ids that every shape has."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 2000, (count,), generator=generator).tolist()


def in_turns(
    sides: dict[str, tuple[Work, Work | None]], count: int
) -> dict[str, tuple[float, float]]:
    """Medians of each side's wall and CPU seconds, after a turn that is not counted.

    Where a second work is given, its time is taken off.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(count + 1):
        for name, (work, less) in sides.items():
            wall, cpu = timed(work)
            if less:
                without = timed(less)
                wall, cpu = wall - without[0], cpu - without[1]
            if number:
                found[name].append((wall, cpu))
    return {
        name: (statistics.median(w for w, _ in both), statistics.median(c for _, c in both))
        for name, both in found.items()
    }


def timed(work: Work) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time() + LlamaCpp.cpu_seconds
    work()
    spent = time.process_time() + LlamaCpp.cpu_seconds - cpu
    return time.perf_counter() - wall, spent


if __name__ == "__main__":
    main()
