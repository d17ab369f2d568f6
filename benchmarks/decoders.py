"""The programs that answer, side by side: the same weights, the same greedy choice."""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from torch import Tensor, nn

from benchmarks.peers import Setting, their_model
from lora.inject import remove_lora
from model.answering import arrange_for_answers
from model.generate import stream
from model.llama import Llama
from model.sampling import Sampler, SamplingConfig
from publish.gguf_file import write_gguf

VOCABULARY = Path(__file__).parents[1] / "model" / "demo"
Answer = Callable[[Sequence[int], int], list[int]]  # a prompt and how many tokens -> the tokens


def arranged(model: Llama, quantize: str | None = None) -> Llama:
    """A model that answers with the weights of `model`, which stays as it is; without adapter."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    mine = copy.deepcopy(model, shared)
    remove_lora(mine)
    return arrange_for_answers(mine.eval(), quantize)


def here(model: Llama) -> Answer:
    """This project."""

    def answer(prompt: Sequence[int], count: int) -> list[int]:
        return list(stream(model, prompt, Sampler(SamplingConfig()), frozenset(), count))

    return answer


def transformers_model(setting: Setting, model: Llama) -> nn.Module:
    """The peer on the weights of `model` themselves, without adapter, and with its cache on."""
    peer = their_model(setting, model).unload().eval()
    peer.config.use_cache = True
    # As `from_pretrained` leaves them. Frozen, PyTorch would take another way through the head for
    # the last of several tokens, and copy it for that: 1.9 s at the 1B shape.
    peer.requires_grad_(True)
    return peer


def transformers_side(peer: Any) -> Answer:
    """Transformers' `generate`, with what makes it fastest here: its default cache and sdpa."""

    def answer(prompt: Sequence[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            found = peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                eos_token_id=None,
            )
        return found[0, len(prompt) :].tolist()

    return answer


class LlamaCpp:
    """llama.cpp, with its own defaults, on a file that is written here.

    It has a process of its own: with its threads beside PyTorch's, OpenMP counts more of them than
    processors, and has all sleep between two products instead of waiting awake, which doubles the
    time of a small model's token here, and adds a third in transformers.
    """

    cpu_seconds = 0.0  # of all of these processes together

    def __init__(self, model: Llama, kind: str, folder: Path) -> None:
        file = folder / f"{kind}.gguf"
        write_gguf(WeightsOf(model), VOCABULARY, kind, file)  # type: ignore[arg-type]
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        arguments = other, str(file), torch.get_num_threads()
        context.Process(target=serve_llama_cpp, args=arguments, daemon=True).start()
        other.close()  # or nobody would notice if that process died
        self.connection.recv()

    def __call__(self, prompt: Sequence[int], count: int) -> list[int]:
        return [token["id"] for token in self.complete(prompt, count)]

    def complete(self, prompt: Sequence[int], count: int) -> list[dict[str, Any]]:
        """The greedy tokens, each with its "id" and "logprob"."""
        request = {
            "prompt": list(prompt),
            "n_predict": count,
            "temperature": 0,
            "n_probs": 1,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        self.connection.send(request)
        tokens, spent = self.connection.recv()
        LlamaCpp.cpu_seconds += spent
        return tokens


def serve_llama_cpp(connection: Any, file: str, threads: int) -> None:
    """What such a process does: answers requests, and says how many CPU seconds each took."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 1024
    params.offline, params.verbosity = True, -1
    for one in (params.cpuparams, params.cpuparams_batch):
        one.n_threads = threads
    server = xllamacpp.Server(params)
    connection.send("ready")
    while True:
        try:
            request = connection.recv()
        except EOFError:  # the benchmark has ended
            return
        before = time.process_time()
        reply = server.handle_completions(request)
        tokens = reply["choices"][0]["logprobs"]["content"]
        connection.send((tokens, time.process_time() - before))


class WeightsOf:
    """A model's own weights, without adapter, as `write_gguf` takes them."""

    def __init__(self, model: Llama) -> None:
        self.config = model.config
        self.tensors = {
            name.replace(".base.", "."): p.detach()
            for name, p in model.named_parameters()
            if ".lora_" not in name
        }
        self.shapes = {name: tuple(p.shape) for name, p in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].float()
