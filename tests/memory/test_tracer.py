"""Bytes that are alive, by what they are."""

import pytest
import torch

from train.errors import is_out_of_memory
from train.memory.tracer import ACTIVATIONS, WEIGHTS, LiveStorages


def test_views_count_once_and_what_is_freed_no_more() -> None:
    weight = torch.zeros(10)
    with LiveStorages() as live:
        live.count_as([weight], WEIGHTS)
        live.record()
        made = weight + 1
        view = made.view(2, 5)
        del made
        view.add_(1)
        del view
        last = weight * 2
        names, bytes_of_kinds = live.recorded()

    assert list(names) == [
        "aten::add.Tensor",
        "aten::view",
        "aten::add_.Tensor",
        "aten::mul.Tensor",
    ]
    assert [row[4] for row in bytes_of_kinds] == [40, 40, 40, 40]
    assert {row[0] for row in bytes_of_kinds} == {40}
    assert live.peak == 80
    del last


def test_an_allocator_gives_whole_blocks() -> None:
    with LiveStorages(block=512) as live:
        kept = [torch.zeros(1), torch.zeros(129)]

    assert live.peak == 512 + 1024
    assert len(kept) == 2


def test_what_was_there_before_counts_where_it_was_named() -> None:
    named, other = torch.zeros(5), torch.zeros(7)
    with LiveStorages() as live:
        live.count_as([named], ACTIVATIONS)
        live.count_as([named], WEIGHTS)
        other.add_(1)

    assert live.peak == 20


def test_beyond_the_limit_it_raises_what_a_gpu_raises() -> None:
    with LiveStorages(limit=100) as live:
        first = torch.zeros(20)
        with pytest.raises(torch.OutOfMemoryError, match="limit of 100") as raised:
            torch.zeros(6)
        second = torch.zeros(5)

    assert is_out_of_memory(raised.value)
    assert live.peak == 100
    del first, second
