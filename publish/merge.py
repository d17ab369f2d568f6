"""The weights of a base model with an adapter merged into them.

    W'  =  W + scale * B A          in float32, rounded once

Nothing is kept: a tensor is read, and merged if it has an adapter, when somebody asks for it, so
that a model of any size can be written with one tensor in memory at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lora.adapter import PREFIX, WEIGHTS_FILE, check_fits, read_weights
from lora.layer import lora_scale, merged_weight
from model.config import LlamaConfig
from model.llama import Llama
from model.weights import check_tensors, check_tied_head, files_of_tensors, read_tensor
from publish.source import Source

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


class MergedWeights:
    """The weights of a base model with an adapter merged into them, each computed when asked for.

    Attributes:
        config: the model's dimensions.
        shapes: of all tensors, by their names on the Hub. A tied head is not among them.

    Raises:
        ValueError: if base or adapter are damaged, or do not fit each other.
    """

    def __init__(self, source: Source) -> None:
        folder = source.model.path
        self.config = LlamaConfig.from_folder(folder)
        with torch.device("meta"):
            model = Llama(self.config)
        self.files = files_of_tensors(folder)
        check_tensors(model, self.files, folder)
        self.adapter, _ = read_weights(source.adapter / WEIGHTS_FILE)
        check_fits(self.adapter, model, source.config, source.base, source.adapter)
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        if HEAD in self.files and HEAD not in self.shapes:
            model.model.embed_tokens.weight = nn.Parameter(self.stored(EMBEDDINGS))
            check_tied_head(model, self.files[HEAD], None, "cpu")
        lora = source.config
        self.scale = lora_scale(lora.rank, lora.alpha, lora.use_rslora)

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor, rounded to `dtype` after it was merged."""
        exact = self.merged(name) if self.is_adapted(name) else self.stored(name)
        return exact.to(dtype)

    def stored(self, name: str) -> Tensor:
        """One tensor as the base has it."""
        return read_tensor(self.files[name], name, None)

    def merged(self, name: str) -> Tensor:
        """One adapted tensor in float32."""
        return merged_weight(self.stored(name), *self.factors(name), self.scale)

    def is_adapted(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return f"{PREFIX}{name.removesuffix('.weight')}.lora_A.weight" in self.adapter

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of an adapted tensor, in float32."""
        layer = f"{PREFIX}{name.removesuffix('.weight')}"
        a, b = (self.adapter[f"{layer}.lora_{matrix}.weight"] for matrix in "AB")
        return a.float(), b.float()

    def update_norm(self, name: str) -> float:
        """The Frobenius norm of scale * B A.

        Its square is the trace of (B^T B) (A A^T), two matrices of rank times rank.
        """
        a, b = (matrix.double() for matrix in self.factors(name))
        return self.scale * math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))


class Rounding:
    """How much of an adapter was lost when the merged weights were rounded.

    Attributes:
        lost: the square of the rounding error's Frobenius norm.
        whole: that of the adapter's part.
    """

    def __init__(self) -> None:
        self.lost = self.whole = 0.0

    @property
    def share(self) -> float:
        """The rounding error of all merged weights, relative to the adapter's part in them."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0
