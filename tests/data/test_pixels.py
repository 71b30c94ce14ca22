"""Images of 8 bits travel as they are; what a task gets has the bits of an image that was scaled on
the host.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from torch import Tensor

from tests.helpers import Trace, argv, record
from train.batch.window import Batch
from train.run import Run
from train.tasks.classification import Classification

FEATURES = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
DATA = "data={source: tests.data.test_pixels.pictures, columns: {inputs: image, labels: label}}"
MODEL = "model={target: mlp, args: {inputs: 64, hidden: [4], outputs: 3}}"


def pictures(size: int = 10) -> Dataset:
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (size, 8, 8), dtype=np.uint8))
    return Dataset.from_dict(
        {"image": images, "label": [i % 3 for i in range(size)]}, features=FEATURES
    )


def numbers() -> Tensor:
    """What the pictures are, scaled by NumPy."""
    stored = np.stack([np.asarray(picture) for picture in pictures()["image"]])
    return torch.from_numpy(stored.astype(np.float32) / np.float32(255))[:, None]


class Brightness(Classification):
    """Counts by the pixels; what each call was given is kept."""

    seen: tuple[list[Batch], list[Batch]] = ([], [])

    def loss_weight(self, batch: Batch) -> float:
        Brightness.seen[0].append(dict(batch))
        return float((batch["inputs"].mean((1, 2, 3)) > 0).sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        Brightness.seen[1].append(batch)
        return super().loss_sum(model, batch)


def identity(sample: Batch, generator: torch.Generator) -> Batch:
    assert sample["inputs"].dtype == torch.float32
    return sample


@pytest.mark.parametrize(
    ("words", "travels_as"),
    [
        ("data.preload=true", torch.uint8),
        ("data.preload=false", torch.uint8),
        ("data.transform=tests.data.test_pixels.identity", torch.float32),
        ("precision=fp64", torch.uint8),
    ],
)
def test_a_task_gets_what_the_host_would_have_made(
    tmp_path: Path, words: str, travels_as: torch.dtype
) -> None:
    for seen in Brightness.seen:
        seen.clear()
    travelled: list[torch.dtype] = []

    def watch(run: Run, trace: Trace) -> None:
        own = run.learner.feed.take

        def take(micro_batch: Any) -> Batch:
            travelled.append(micro_batch.batch["inputs"].dtype)
            return own(micro_batch)

        run.learner.feed.take = take  # type: ignore[method-assign]
        for seen in Brightness.seen:  # by what was tried before
            seen.clear()

    given = (
        DATA,
        MODEL,
        "task=tests.data.test_pixels.Brightness",
        "batch={effective: 8, micro: 3}",
        "precision=fp32",
    )
    record(argv(tmp_path, *given, words), prepare=watch)

    assert set(travelled) == {travels_as}
    dtype = torch.float64 if "fp64" in words else torch.float32
    for counted in Brightness.seen[0]:
        assert torch.equal(counted["inputs"], numbers()[counted["sample_id"]])
    for trained in Brightness.seen[1]:
        assert trained["inputs"].dtype == dtype
        assert torch.equal(trained["inputs"], numbers()[trained["sample_id"]].to(dtype))
    assert sum(len(batch["labels"]) for batch in Brightness.seen[1]) == 10
