"""One question on the terminal, and its answer.

The answer streams to stdout, and nothing else does; how fast it was is told on stderr.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from app.model_files import ModelFiles, open_model
from data.chat_format import Message
from data.command_line import argument, option
from data.tokenizer import Tokenizer
from lora.choose_adapter import check_base, check_whole, find_adapter
from lora.config import CONFIG_FILE, read_config
from model.generation_config import SamplingConfig, room_for

if TYPE_CHECKING:
    from model.llama import Llama


@dataclass(frozen=True)
class AskConfig:
    """One question; each field is a flag of `chat.py ask`."""

    prompt: str = argument("the question, as one argument; - reads it from stdin")
    model: str = option("demo", "Hub id (optionally id@revision), local folder, or demo")
    adapter: str | None = option(None, "folder of a LoRA adapter, a run, or a checkpoint")
    system: str | None = option(None, "what the model is told about its task, before the question")
    temperature: float | None = option(
        None,
        "0 always takes the likeliest token, 1 draws as the model predicts (default: the model's)",
    )
    top_k: int | None = option(
        None, "draw among the k likeliest tokens, 0 for all (default: the model's own)"
    )
    top_p: float | None = option(
        None,
        "draw among the likeliest tokens, this probable together (default: the model's own)",
    )
    min_p: float | None = option(
        None,
        "drop tokens below this fraction of the likeliest's probability (default: the model's own)",
    )
    repetition_penalty: float | None = option(
        None, "above 1 makes tokens that occurred already less likely (default: the model's own)"
    )
    max_new_tokens: int = option(512, "longest answer, in tokens")
    seed: int = option(0, "fixes the draws")
    dtype: str = option("auto", "bf16, fp16 or fp32; auto takes the fastest the hardware has")
    device: str = option("auto", "cuda, mps or cpu; auto takes the first that there is")
    quantize: str | None = option(
        None, "int8 answers faster on an x86 CPU, from weights of 8 bits (default: not rounded)"
    )


def ask(config: AskConfig) -> None:
    """Streams the answer to one question."""
    prompt = read_prompt(config)
    if config.adapter == "":
        raise ValueError("--adapter is empty; give a folder, or leave the flag out")
    files = open_model(config.model)
    sampling = sampling_settings(config, files.sampling)
    messages = [] if config.system is None else [Message("system", config.system)]
    messages.append(Message("user", prompt))
    ids = files.chat_format.render(messages, generation_prompt=True).ids
    room = room_for(files.config, ids, config.max_new_tokens)
    adapter = None if config.adapter is None else find_adapter(Path(config.adapter))
    if adapter:
        read_config(adapter / CONFIG_FILE)
        check_whole(adapter)

    # PyTorch takes a second to import, which nobody should wait for to be told of a mistake above.
    from model.answering import arrange_for_answers
    from model.device import is_out_of_memory
    from model.generate import stream
    from model.sampling import Sampler

    try:
        model = load(config, files, adapter)
        started = time.perf_counter()
        sampler = Sampler(sampling, config.seed, model.model.embed_tokens.weight.device)
        tokens = stream(model, ids, sampler, files.stop_ids, room)
        if room > 1:
            tokens = with_a_break(tokens, lambda: arrange_for_answers(model, config.quantize))
        times = show(tokens, files.tokenizer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"{config.model} does not fit into the memory of the device; try a smaller model, "
            "fewer --max-new-tokens, or --device cpu"
        ) from None
    print(speed(started, times, len(ids), model), file=sys.stderr)


def read_prompt(config: AskConfig) -> str:
    """The question, from the command line or from stdin."""
    if config.prompt == "-" and sys.stdin is None:
        raise ValueError("stdin is closed; give the question as an argument")
    prompt = sys.stdin.read() if config.prompt == "-" else config.prompt
    if not prompt.strip():
        raise ValueError("the prompt is empty; ask something")
    for name, text in (("prompt", prompt), ("system", config.system or "")):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the {name} is not UTF-8 from character {error.start + 1} on; check the "
                "terminal's encoding, or set PYTHONUTF8=1"
            ) from None
    return prompt


def sampling_settings(config: AskConfig, own: SamplingConfig) -> SamplingConfig:
    """The model's own settings, with those replaced that the user gave."""
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed is {config.seed}; it must be 0 or more and below 2^63")
    names = [field.name for field in dataclasses.fields(own)]
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    settings = dataclasses.replace(own, **given)
    without_effect = given.keys() & {"top_k", "top_p", "min_p"}
    if settings.temperature == 0 and without_effect:
        flag = "--" + min(without_effect).replace("_", "-")
        whose = "this model's own temperature 0" if config.temperature is None else "temperature 0"
        raise ValueError(
            f"{flag} has no effect at {whose}, which always takes the likeliest token; "
            "add --temperature 1"
        )
    return settings


def load(config: AskConfig, files: ModelFiles, adapter: Path | None) -> Llama:
    """The model, with the adapter in it if there is one."""
    from lora.adapter import load_adapter
    from lora.answering import arrange_lora_for_answers
    from model.device import check_quantize, choose_device, choose_dtype
    from model.weights import load_model, weights_sha256

    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    check_quantize(config.quantize, device, dtype)
    model = load_model(files.folder, dtype, device)
    if adapter:
        base = load_adapter(model, adapter)
        arrange_lora_for_answers(model)
        check_base(adapter, base, files.name, lambda: weights_sha256(files.folder))
    return model


def with_a_break(tokens: Iterator[int], work: Callable[[], object]) -> Iterator[int]:
    """The tokens, and after the first the work that only those after it have a use for."""
    for token in islice(tokens, 1):
        yield token
        work()
    yield from tokens


def show(tokens: Iterator[int], tokenizer: Tokenizer) -> list[float]:
    """Prints tokens as they come; returns when each of them did."""
    text = tokenizer.stream()
    times = []
    for token in tokens:
        times.append(time.perf_counter())
        print(text.push(token), end="", flush=True)
    print(text.flush(), flush=True)
    return times


def speed(started: float, times: list[float], prompt_tokens: int, model: Llama) -> str:
    """How long the first token took, and how fast those after the second came, if there are any."""
    weight = model.model.embed_tokens.weight
    where = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
    said = f"{prompt_tokens} prompt tokens"
    if times:
        said += f", first new one after {times[0] - started:.2f} s"
    said += f"; {len(times)} new"
    if len(times) > 2:
        rate = (len(times) - 2) / (times[-1] - times[1])  # before the second the model is arranged
        said += f", {rate:.1f} tokens/s"
    return f"{said} ({where})"
