"""llama.cpp itself, to run what was exported; and small models to export.

It runs in this process, with two threads, and listens on the loopback address only. Completions go
to it directly; tokenizing and chat templates have no other way in than that address. Keys and
values are kept in float32: the default of float16 rounds more than the weights' type does.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from model.config import LlamaConfig
from model.llama import Llama
from publish.gguf_check import check_gguf
from publish.gguf_file import write_gguf


class Answer(NamedTuple):
    """The ids of an answer without the one that ended it, and why it ended: "eos" or "limit"."""

    ids: list[int]
    reason: str


class LlamaCpp:
    """A GGUF file, loaded."""

    def __init__(self, file: Path, context: int = 2048) -> None:
        self.library = pytest.importorskip("xllamacpp")
        params = self.library.CommonParams()
        params.model.path = str(file)
        params.n_ctx = context
        for threads in (params.cpuparams, params.cpuparams_batch):
            threads.n_threads = 2
            threads.poll = 0  # while it waits, the processor is ours
        params.cache_type_k = params.cache_type_v = self.library.ggml_type.GGML_TYPE_F32
        flash = self.library.llama_flash_attn_type
        params.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        params.offline = True
        params.verbosity = -1
        self.server = self.library.Server(params)
        assert self.server.listening_address.startswith("http://127.0.0.1:")

    def complete(self, prompt: Sequence[int], count: int, **settings: Any) -> list[dict[str, Any]]:
        """The generated tokens, each with "id" and "logprob", and last of all why it ended."""
        request = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "n_probs": 1}
        reply = self.server.handle_completions(request | {"verbose": True} | settings)
        tokens = reply["choices"][0]["logprobs"]["content"]
        return [*tokens, {"reason": reply["__verbose"]["stop_type"]}]

    def answer(self, prompt: Sequence[int], count: int) -> Answer:
        """The greedy continuation of some ids."""
        *tokens, end = self.complete(prompt, count, cache_prompt=False)
        return Answer([token["id"] for token in tokens], end["reason"])

    def log_probabilities(self, ids: Sequence[int]) -> Tensor:
        """Of each of the ids but the first, given those before it; float32, (T - 1,).

        A bias makes it choose the next id of the text; what it reports is from before the bias.
        """
        found = []
        for i in range(1, len(ids)):
            token = self.complete(ids[:i], 1, logit_bias=[[ids[i], 1000.0]])[0]
            assert token["id"] == ids[i]
            found.append(token["logprob"])
        return torch.tensor(found)

    def tokenize(self, text: str, is_chat: bool = False) -> list[int]:
        """The ids of a plain text; of a rendered chat, where control tokens and BOS count."""
        request = {"content": text, "add_special": is_chat, "parse_special": is_chat}
        return self.post("/tokenize", request)["tokens"]

    def chat_prompt(self, messages: list[dict[str, str]], **settings: str) -> str:
        """What its template makes of a conversation, up to where the answer begins."""
        request = {"messages": messages, "chat_template_kwargs": settings}
        return self.post("/apply-template", request)["prompt"]

    def properties(self) -> dict[str, Any]:
        """What it says of the model."""
        with urllib.request.urlopen(f"{self.server.listening_address}/props") as reply:
            return json.load(reply)

    def post(self, path: str, request: dict[str, Any]) -> Any:
        address = f"{self.server.listening_address}{path}"
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, body, headers)) as reply:
            return json.load(reply)


class WeightsOf:
    """A model's own weights in the place of merged ones."""

    def __init__(self, model: Llama) -> None:
        self.config: LlamaConfig = model.config
        self.tensors = {name: p.detach() for name, p in model.named_parameters()}
        self.shapes = {name: tuple(p.shape) for name, p in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].float()


def export(weights: Any, model: Path, kind: str, file: Path) -> tuple[str, ...]:
    """Writes and checks a GGUF file; returns the notes."""
    notes = write_gguf(weights, model, kind, file)
    check_gguf(weights, model, kind, file)
    return notes


def rounded(weights: Any, dtype: torch.dtype) -> Llama:
    """Our model with these weights, its matrices rounded to `dtype` and computed in float32."""
    model = Llama(weights.config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            exact = weights.tensor(name)
            parameter.copy_(exact if exact.ndim == 1 else exact.to(dtype))
    return model
