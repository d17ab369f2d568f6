"""The one model of the server, and the answers it writes for everybody.

There is one model in memory, whoever asks. What an answer needs of its own (the adapter, a KV
cache, a sampler, a decoder) is set up for its turn, so that nothing passes from one chat to
another. Only caches are kept, each under its conversation's name, to compute nothing twice.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from app.model_files import ModelFiles
from app.turns import Turns
from lora.adapter import WEIGHTS_FILE, load_adapter
from lora.answering import arrange_lora_for_answers
from lora.choose_adapter import check_base, check_whole
from lora.config import CONFIG_FILE
from lora.inject import lora_disabled, remove_lora
from model.answering import arrange_for_answers
from model.cache import KVCache
from model.device import check_quantize, choose_device, choose_dtype, is_out_of_memory
from model.generate import PREFILL_TOKENS, common_prefix, new_cache, prefill, stream
from model.generation_config import SamplingConfig, room_for
from model.llama import Llama
from model.sampling import Sampler
from model.weights import files_of_tensors, load_model, weights_sha256

NO_MEMORY = (
    "there is not enough memory for this answer; try a shorter chat, a smaller model, or another "
    "--dtype or --device"
)
FAILED = "the model failed at this answer; the server's log says more"
# oneDNN, which multiplies 16-bit matrices on a CPU, compiles a kernel for every shape that it meets
# and keeps a thousand of them. These environment variables are its limits.
KERNEL_LIMITS = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
KERNELS_KEPT = 64
CACHE_BYTES = 2**30  # of all caches together that are kept between turns
CACHE_BLOCK = 2048  # tokens: a conversation's cache grows by this much, and so is seldom moved

Stamp = tuple[tuple[str, int, int], ...]
CacheName = tuple[str, Stamp, Stamp]
Writing = Generator["Written", None, None]


@dataclass(frozen=True)
class Request:
    """An answer that somebody wants.

    Attributes:
        files: the model.
        adapter: the folder of the adapter to use; None for the model alone.
        ids: the prompt.
        sampling: how tokens are chosen.
        seed: fixes the draws.
        max_new_tokens: the longest answer.
        conversation: the key of the conversation that the prompt goes on with, whose cache is used
            and kept; None for a prompt that stands alone.
    """

    files: ModelFiles
    adapter: Path | None
    ids: list[int]
    sampling: SamplingConfig
    seed: int
    max_new_tokens: int
    conversation: str | None = None


class Written(NamedTuple):
    """A little more of an answer.

    Attributes:
        which: of the requests.
        text: what is new; often nothing, while a character lacks bytes or a prompt is being read.
        tokens: how many tokens the answer has so far.
        is_cut: whether the longest answer is reached.
        seconds: that were spent on this answer so far, without waiting, loading or other answers.
    """

    which: int
    text: str
    tokens: int
    is_cut: bool
    seconds: float = 0.0


class Engine:
    """Loads what a request needs and answers it, one at a time.

    Args:
        device: as in `choose_device`.
        dtype: as in `choose_dtype`.
        quantize: as in `check_quantize`.

    Raises:
        ValueError: if this machine cannot do what one of them says.
    """

    def __init__(
        self, device: str = "auto", dtype: str = "auto", quantize: str | None = None
    ) -> None:
        for name in KERNEL_LIMITS:
            os.environ.setdefault(name, str(KERNELS_KEPT))
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        check_quantize(quantize, self.device, self.dtype)
        self.quantize = quantize
        self.turns = Turns()
        self.caches: OrderedDict[CacheName, KVCache] = OrderedDict()
        self.unload()

    def unload(self) -> None:
        """Lets go of the model and of all caches."""
        self.model: Llama | None = None
        self.model_stamp: Stamp = ()
        self.adapter_stamp: Stamp = ()
        self.sha256: str | None = None
        self.free_caches()

    def free_caches(self) -> None:
        """Lets go of all caches."""
        self.caches.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def answer(self, requests: Sequence[Request], tell: Callable[[str], None]) -> Writing:
        """Writes the answers token by token, by turns if there are several (of one model).

        Close the generator to stop it: its place is then free, and the cache holds what was read.

        Args:
            requests: with at most one adapter among them.
            tell: is told what the answer is waiting for. It may raise to give up.

        Raises:
            ValueError: if the model or the adapter cannot be used, or memory is not enough. The
                next request starts afresh.
        """
        with self.turns.turn(lambda ahead: tell(waiting_for(ahead))):
            trouble = ""
            try:
                self.prepare(requests, tell)
                tell("Reading …")
                yield from self.write_by_turns(requests)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    logging.getLogger("chat").exception("an answer failed")
                trouble = NO_MEMORY if is_out_of_memory(error) else FAILED
            if trouble:  # out of the `except`, whose traceback holds on to tensors
                self.unload() if trouble == FAILED else self.free_caches()
                raise ValueError(trouble)

    def prepare(self, requests: Sequence[Request], tell: Callable[[str], None]) -> None:
        """Puts the requests' model and adapter into memory, if others or none are there."""
        files = requests[0].files
        stamp = stamp_of(sorted(set(files_of_tensors(files.folder).values())))
        if self.model is None or stamp != self.model_stamp:
            tell(f"Loading {files.name} …")
            self.unload()  # first, so that there are never two
            model = load_model(files.folder, self.dtype, self.device)
            self.model = arrange_for_answers(model, self.quantize)
            self.model_stamp = stamp
        adapter = next((request.adapter for request in requests if request.adapter), None)
        if adapter is not None:
            self.use_adapter(adapter, self.model, files)

    def use_adapter(self, adapter: Path, model: Llama, files: ModelFiles) -> None:
        """Gives the model this adapter in place of another."""
        stamp = stamp_of([adapter / CONFIG_FILE, adapter / WEIGHTS_FILE])
        if stamp == self.adapter_stamp:
            return
        remove_lora(model)
        self.adapter_stamp = ()
        check_whole(adapter)
        try:
            base = load_adapter(model, adapter)
            arrange_lora_for_answers(model)
            check_base(adapter, base, files.name, lambda: self.weights_hash(files))
        except BaseException:
            remove_lora(model)
            raise
        self.adapter_stamp = stamp

    def weights_hash(self, files: ModelFiles) -> str:
        """The hash of the model's files, computed once."""
        self.sha256 = self.sha256 or weights_sha256(files.folder)
        return self.sha256

    def write_by_turns(self, requests: Sequence[Request]) -> Writing:
        """A token of each answer in turn, until all have ended."""
        assert self.model is not None
        model = self.model
        streams = {i: self.write(model, i, request) for i, request in enumerate(requests)}
        seconds = [0.0] * len(requests)
        try:
            while streams:
                for i, written in list(streams.items()):
                    is_base = requests[i].adapter is None
                    started = time.perf_counter()
                    with lora_disabled(model) if is_base else nullcontext():
                        more = next(written, None)
                    seconds[i] += time.perf_counter() - started
                    if more is None:
                        del streams[i]
                    else:
                        yield more._replace(seconds=seconds[i])
        finally:
            for written in streams.values():
                written.close()

    def write(self, model: Llama, which: int, request: Request) -> Writing:
        """One answer. The model has its adapter, or has it switched off, at every step."""
        ids = request.ids
        room = room_for(model.config, ids, request.max_new_tokens)
        name = self.cache_name(request)
        cache = self.take_cache(name, model, len(ids) + room)
        try:
            known = common_prefix(cache.tokens[0], ids)
            for end in range(known + PREFILL_TOKENS, len(ids), PREFILL_TOKENS):
                prefill(model, cache, ids[:end])
                yield Written(which, "", 0, False)
            sampler = Sampler(request.sampling, request.seed, self.device)
            stops = request.files.stop_ids
            text = request.files.tokenizer.stream()
            count = 0
            tokens = stream(model, ids, sampler, stops, request.max_new_tokens, cache)
            for count, token in enumerate(tokens, start=1):
                yield Written(which, text.push(token), count, count == room)
            yield Written(which, text.flush(), count, count == room)
        finally:
            if name:
                self.keep_cache(name, cache)

    def cache_name(self, request: Request) -> CacheName | None:
        """Under which name the cache of a request is kept; None if it is not."""
        if request.conversation is None:
            return None
        adapter = () if request.adapter is None else self.adapter_stamp
        return request.conversation, self.model_stamp, adapter

    def take_cache(self, name: CacheName | None, model: Llama, tokens: int) -> KVCache:
        """The cache that is kept under a name, or a new one; with room for so many tokens."""
        if name is None:
            return new_cache(model, 1, tokens)
        blocks = math.ceil(tokens / CACHE_BLOCK)
        capacity = min(blocks * CACHE_BLOCK, model.config.max_position_embeddings)
        cache = self.caches.pop(name, None) or new_cache(model, 1, capacity)
        cache.grow(capacity)
        return cache

    def keep_cache(self, name: CacheName, cache: KVCache) -> None:
        """Keeps a cache for the next turn; those not used for longest make room for it."""
        if bytes_of(cache) > CACHE_BYTES:
            return
        self.caches[name] = cache
        while sum(bytes_of(kept) for kept in self.caches.values()) > CACHE_BYTES:
            self.caches.popitem(last=False)


def stamp_of(paths: Sequence[Path]) -> Stamp:
    """What changes when a file is replaced or written again: its place, size and time.

    Raises:
        ValueError: if one is not there.
    """
    try:
        stats = [(str(path.resolve()), path.stat()) for path in paths]
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror})") from None
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def bytes_of(cache: KVCache) -> int:
    """How much memory a cache takes."""
    return cache.keys.nbytes + cache.values.nbytes


def waiting_for(ahead: int) -> str:
    """What somebody who waits is told."""
    return "One answer comes before this one …" if ahead == 1 else f"{ahead} answers come first …"
