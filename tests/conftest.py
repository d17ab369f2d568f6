"""What the tests share: the devices, a small Llama that hides no bug, and the real assets."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

# Before torch is imported: where several files are tested at once, each has a core of its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from tqdm import tqdm

from model.config import LlamaConfig
from model.llama import Llama

# Their fixtures are for the tests of one subject each.
pytest_plugins = [
    "browser",
    "demo_runs",
    "hub_client",
    "hub_templates",
    "small_runs",
    "export_places",
    "chat_places",
    "uploads",
]
ROOT = Path(__file__).parents[1]

# tqdm's lock is one for a process and all that it forks: a child that is killed while it holds it
# would stop all others for good.
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))

# Of several workers none shall be left with a long file when the others are done. What forks most
# comes first: a fork copies what a process has, and that becomes more from test to test.
FIRST = """
    command_operations file_operations stopping durable random_kills power_loss export_failures
    real_weights demo_training chat_browser train_matches_transformers hub_backup benchmarks
    train_command
""".split()
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PROCESSOR_HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported
OTHER_HARDWARE = ("needs a CUDA device", "needs a processor")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that the project supports; those that this machine lacks are skipped."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real tokenizers, weights and conversations, named by ASSETS.

    They are made out of other packages' files and are not part of this repository.
    """
    folder = os.environ.get("ASSETS")
    if not folder:
        pytest.skip("needs real tokenizers and weights: set ASSETS to their folder")
    return Path(folder)


def llama3_rope(factor: float) -> dict[str, Any]:
    """RoPE as Llama 3.1 and 3.2 have it, in the newer spelling."""
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A config.json whose dimensions all differ, so that no two of them can be mixed up."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": llama3_rope(32.0),
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
    } | changes


def tiny_llama(seed: int = 0, **changes: Any) -> Llama:
    """A random Llama with weights large enough to tell right from wrong.

    With the usual standard deviation of 0.02 attention is nearly uniform, and a model without any
    position encoding passes for one with it.
    """
    model = Llama(LlamaConfig.from_dict(tiny_config(**changes))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.normal_(centre, 0.15, generator=generator)
    return model


def random_tokens(count: int, seed: int = 0, vocab_size: int = 211) -> torch.Tensor:
    """`count` token ids, the highest one among them."""
    ids = torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed))
    ids[count // 2] = vocab_size - 1
    return ids


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist's own order: by number of tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    note_skip(report)


def note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Remembers what was skipped though this machine could run it."""
    reason = str(report.longrepr)
    if report.skipped and not any(hardware in reason for hardware in OTHER_HARDWARE):
        skipped.append(f"{report.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With NO_SKIPS set, a test that was skipped for want of anything but hardware is a failure."""
    if os.environ.get("NO_SKIPS") and skipped:
        print("\nskipped, and NO_SKIPS is set:", *skipped, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
