"""The predicted peak of a step beside that of torch's own allocator on a CPU, of three models at
six micro-batches.

OMP_NUM_THREADS=1 python -m tests.campaigns.memory_peaks [NAME ...]        prints a table for
docs/results/memory.md
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from tests.helpers import argv
from tests.memory.test_predict import Real
from train.config import load
from train.trace import foresee

FP32 = ("precision=fp32", "optimizer={target: adamw, lr: 0.001, max_grad_norm: 1.0}")
WORDS, TOKENS, SAMPLES = 50257, 256, 8


def _drawn(top: int, *shape: int) -> Tensor:
    return torch.randint(top, shape, generator=torch.Generator().manual_seed(0))


def tokens() -> Dataset:
    drawn = _drawn(WORDS, SAMPLES, TOKENS + 1)
    return Dataset.from_dict({"inputs": drawn[:, :-1].tolist(), "labels": drawn[:, 1:].tolist()})


def sentences() -> Dataset:
    return Dataset.from_dict(
        {"inputs": _drawn(30000, SAMPLES, 128).tolist(), "labels": [0, 1] * (SAMPLES // 2)}
    )


def images() -> Dataset:
    pixels = torch.randn(SAMPLES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"inputs": pixels.tolist(), "labels": [0, 1] * (SAMPLES // 2)})


class ResNet50(nn.Module):
    """That of transformers, (samples, 3, 64, 64) -> (samples, 1000); with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        self.inner: Any = ResNetForImageClassification(ResNetConfig(num_labels=1000))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs).logits


def source(name: str) -> str:
    return f"data={{source: tests.campaigns.memory_peaks.{name}, args: {{}}}}"


MODELS = {
    "GPT, 124M, 256 tokens": (
        (1, 2, 3, 4, 6, 8),
        source("tokens"),
        f"model={{target: gpt, args: {{vocabulary: {WORDS}, layers: 12, heads: 12, width: 768}}}}",
        "task=causal_lm",
    ),
    "ResNet-50, 64 px": (
        (1, 2, 4, 8, 16, 32),
        source("images"),
        "model={target: tests.campaigns.memory_peaks.ResNet50, args: {}}",
        "task=classification",
    ),
    "BERT, 110M, 128 tokens": (
        (1, 2, 3, 4, 6, 8),
        source("sentences"),
        "model={target: hf, args: {num_labels: 2, from_config: {model_type: bert}}}",
        "task=classification",
    ),
}


def compare(name: str, sizes: tuple[int, ...], *overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = load(argv(Path(folder), *FP32, *overrides)).config
        start = time.perf_counter()
        foresight = foresee(config, "cpu", sizes=sizes)
        seconds = time.perf_counter() - start
        assert not foresight.failures, foresight.failures
        real = Real(config)
    print(f"\n{name}: {foresight.parameters:,} parameters, traced in {seconds:.1f} s\n")
    print(
        "| micro-batch | predicted, MiB | allocator, MiB | predicted / allocator - 1 "
        "|\n|---|---|---|---|",
        flush=True,
    )
    for samples in sizes:
        expected, found = foresight.peak(samples, 2), real.allocated(samples, 2)
        row = [
            f"{samples}",
            f"{expected / 2**20:.2f}",
            f"{found / 2**20:.2f}",
            f"{expected / found - 1:+.4%}",
        ]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    for name, (sizes, *overrides) in MODELS.items():
        if len(sys.argv) == 1 or any(name.startswith(word) for word in sys.argv[1:]):
            compare(name, sizes, *overrides)
