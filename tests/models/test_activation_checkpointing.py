"""Activation checkpointing, the user's own and ours: the gradient is that without it."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from tests.helpers import Trace, argv, distance, record, record_all, steps, whole_batch
from tests.live_bytes import LiveBytes
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.main import main
from train.models.activation_checkpointing import NoBlocks, checkpoint_blocks
from train.run import Run
from train.step import Learner


class Net(nn.Module):
    """(samples, 6) -> (samples, 3) through three blocks in a list, which `own` checkpoints by the
    user's own hand.
    """

    def __init__(self, own: str = "none", dropout: float = 0.0, tanhs: int = 1) -> None:
        super().__init__()
        self.own = own
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList()
        for _ in range(3):
            self.blocks.append(
                nn.Sequential(nn.Linear(8, 8), *[nn.Tanh()] * tanhs, nn.Dropout(dropout))
            )
        self.last = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            if self.own == "none":
                hidden = block(hidden)
            elif self.own == "selective":  # the products are kept, all else is computed again
                hidden = checkpoint(block, hidden, use_reentrant=False, context_fn=keep_products)
            else:
                hidden = checkpoint(block, hidden, use_reentrant=self.own == "reentrant")
        return self.last(hidden)


keep_products = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])


class Declares(nn.Linear):
    """A model that checkpoints by itself when it is asked to, as those of transformers do."""

    kwargs: dict[str, Any] | None = None

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        self.kwargs = gradient_checkpointing_kwargs


def net(**args: Any) -> str:
    stated = ", ".join(f"{name}: {value}" for name, value in args.items())
    return f"model={{target: tests.models.test_activation_checkpointing.Net, args: {{{stated}}}}}"


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        (net(own="reentrant"),),
        (net(own="otherwise"),),
        (net(), "memory.activation_checkpointing=true"),
        (net(), "memory.activation_checkpointing=blocks.?"),
        (net(own="otherwise"), "memory.activation_checkpointing=true"),
        (net(), "memory.activation_checkpointing=true", "model.compile=aot_eager"),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, world_size: int, overrides: tuple[str, ...]
) -> None:
    arguments = argv(tmp_path, *overrides, "batch.micro=2", "data.args.size=20")
    plain = argv(tmp_path, net(), "data.args.size=20")

    for trace in run_ranks(world_size, record, arguments):
        for k, ids in enumerate(steps(20, 8), start=1):
            _, expected = whole_batch(plain, trace.weights[k - 1], ids, cross_entropy)
            assert distance(trace.gradients[k], expected) <= 1e-12


def forwards_per_micro_batch(arguments: list[str]) -> list[float]:
    """How often three of the linear layers ran, per micro-batch: one inside the second block, two
    outside any.
    """
    counts: dict[str, int] = {}

    def prepare(run: Run, trace: Trace) -> None:
        for name, part in run.learner.module.named_modules():
            if isinstance(part, nn.Linear):
                counts[name] = 0
                part.register_forward_pre_hook(
                    lambda *_, name=name: counts.update({name: counts[name] + 1})
                )

    trace = record(arguments, prepare=prepare)
    total = sum(len(window.micro_batches) for window in trace.windows)
    return [counts[name] / total for name in ("blocks.1.0", "first", "last")]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("false", [1, 1, 1]), ("true", [2, 1, 1]), ("blocks.1", [2, 1, 1]), ("blocks.0", [1, 1, 1])],
)
def test_what_is_inside_a_block_is_computed_again_and_nothing_else(
    tmp_path: Path, wanted: str, expected: list[float]
) -> None:
    arguments = argv(tmp_path, net(), "batch.micro=2", f"memory.activation_checkpointing={wanted}")

    assert forwards_per_micro_batch(arguments) == expected


def measured(arguments: list[str]) -> tuple[Trace, int]:
    """(trace, the most bytes that a gradient has needed at once)."""
    peaks = []

    def compute(learner: Learner, window: Window) -> Tensor:
        with LiveBytes() as live:
            losses = compute_gradient(learner, window)
        peaks.append(live.peak)
        return losses

    return record(arguments, compute_gradient=compute), max(peaks)


def test_random_masks_are_drawn_once_and_memory_is_saved(tmp_path: Path) -> None:
    """20 activations in each of 3 blocks: where blocks are checkpointed those of one block are
    there at once.
    """
    several = (
        (net(dropout=0.5, tanhs=20),),
        (net(dropout=0.5, tanhs=20), "memory.activation_checkpointing=true"),
        (net(dropout=0.5, tanhs=20, own="selective"),),
    )

    (without, most), *others = (measured(argv(tmp_path, *given)) for given in several)

    for trace, peak in others:
        assert all(
            np.array_equal(trace.gradients[k], without.gradients[k]) for k in without.gradients
        )
        assert peak < 0.6 * most


def test_autocast_is_the_same_the_second_time(run_ranks: Any, tmp_path: Path) -> None:
    given = (net(), "batch.micro=2", "precision=bf16")
    several = [
        argv(tmp_path, *given, f"memory.activation_checkpointing={wanted}")
        for wanted in ("false", "true")
    ]

    without, with_it = run_ranks(1, record_all, several)[0]

    assert all(
        np.array_equal(with_it.gradients[k], without.gradients[k]) for k in without.gradients
    )


def test_names_stay_the_models_own(tmp_path: Path) -> None:
    arguments = argv(
        tmp_path, net(), "memory.activation_checkpointing=true", "model.compile=aot_eager"
    )

    assert main(arguments, "accumulate", compute_gradient) == 0

    assert (
        load_file(tmp_path / "run" / "final" / "model.safetensors").keys()
        == Net().state_dict().keys()
    )


def test_only_the_outermost_of_nested_blocks_is_one() -> None:
    module = Net()

    checkpoint_blocks(module, "blocks*")

    assert "forward" in vars(module.blocks)
    assert not any(
        "forward" in vars(part) for part in module.blocks.modules() if part is not module.blocks
    )


def test_a_model_that_declares_its_blocks_is_asked() -> None:
    module = Declares(6, 3)

    checkpoint_blocks(module, True)

    assert module.kwargs == {"use_reentrant": False}


@pytest.mark.parametrize("wanted", ["true", "blocks.*"])
def test_a_model_without_such_blocks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    assert (
        main(
            argv(tmp_path, f"memory.activation_checkpointing={wanted}"),
            "accumulate",
            compute_gradient,
        )
        == 2
    )

    stderr = capsys.readouterr().err
    assert (
        "has no nn.ModuleList" in stderr
        if wanted == "true"
        else "has no module whose name fits 'blocks.*'" in stderr
    )
    assert "Its modules are layers, layers.0, layers.2" in stderr


def test_nothing_is_touched_where_nothing_is_asked() -> None:
    module = nn.Linear(2, 2)

    checkpoint_blocks(module, False)

    assert "forward" not in vars(module)
    with pytest.raises(NoBlocks, match="such as"):
        checkpoint_blocks(nn.Sequential(module), True)
    assert torch.isfinite(module.weight).all()
