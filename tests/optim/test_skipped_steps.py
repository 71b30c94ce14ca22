"""What a row needs of the device comes by one copy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import argv, record, rows
from train.distributed.ranks import Ranks
from train.optim.skipped_steps import read_together
from train.run import Run


def test_numbers_of_any_type_come_back_as_they_were() -> None:
    tensors = [
        torch.tensor([True, False]),
        None,
        torch.tensor([[0.1], [2.0]]),
        torch.tensor(3, dtype=torch.bfloat16),
    ]

    read = read_together(tensors)

    assert read == [[1.0, 0.0], [], [torch.tensor(0.1).item(), 2.0], [3.0]]
    assert read_together([None]) == [[]]


@pytest.mark.parametrize("every", [1, 2])
def test_a_row_reads_the_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Two terms of which one counts, skipped steps between, the mean loss over the steps since the
    last row.
    """
    reads: list[int] = []
    in_row = False
    log, tolist, item = Run.log, Tensor.tolist, Tensor.item

    def watched(self: Run, *args: Any) -> None:
        nonlocal in_row
        in_row = True
        reads.append(0)
        log(self, *args)
        in_row = False

    def counted(read: Any) -> Any:
        def call(tensor: Tensor) -> Any:
            if in_row:
                reads[-1] += 1
            return read(tensor)

        return call

    monkeypatch.setattr(Run, "log", watched)
    monkeypatch.setattr(Tensor, "tolist", counted(tolist))
    monkeypatch.setattr(Tensor, "item", counted(item))
    # a tensor of the host, of one rank
    monkeypatch.setattr(Ranks, "sum", lambda self, values: list(values))

    record(
        argv(
            tmp_path,
            "data.args={size: 48, nan: [9]}",
            f"log.every_steps={every}",
            "noise_scale.every_steps=0",
        )
    )

    assert reads == [1] * (6 // every)
    assert [row["train/skipped_steps"] for row in rows(tmp_path, "train/skipped_steps")][-1] == 1
