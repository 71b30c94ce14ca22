"""The peak of a step as it is traced, beside what torch's own allocator gave out for that step,
byte by byte.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import argv
from tests.live_bytes import LiveBytes
from train.batch.window import Batch
from train.config import Config, load
from train.data import normalized, open_datasets
from train.distributed.accelerator import connect
from train.memory.cpu_allocator import AllocatedPeak
from train.memory.memory_trace import (
    AS_CONFIGURED,
    CHECKPOINTED,
    CHUNKED,
    CHUNKED_AND_CHECKPOINTED,
    VARIANTS,
    trace_in_subprocess,
)
from train.memory.predict import OtherOperations, Peaks, fit
from train.memory.sizes import stored_bytes, tensors_of
from train.memory.traced_step import RecordedStep, Stepper
from train.setup import make_learner
from train.tasks import by_term, make_task
from train.trace import foresee


class Residual(nn.Module):
    """(samples, 8, 8) -> (samples, 10): convolutions with BatchNorm, added to what they were given."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(blocks)
        )
        self.leave = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.enter(inputs.unsqueeze(1))
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x.mean((2, 3)))


GPT = (
    "data={source: tests.memory.test_predict.ids, args: {}}",
    "model={target: gpt, args: {vocabulary: 300, layers: 3, heads: 2, width: 32}}",
    "task=causal_lm",
)
RESIDUAL = (
    "data={source: digits, args: {}, columns: {inputs: image, labels: label}}",
    "model={target: tests.memory.test_predict.Residual, args: {}}",
    "task=classification",
)
BERT = (
    "data={source: tests.memory.test_predict.texts, args: {}, max_length: 24}",
    "model={target: hf, args: {num_labels: 3, from_config: {model_type: bert, vocab_size: 257, hidden_size: 32, "
    "num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}}}",
    "task=classification",
)
NETS = {"gpt": GPT, "residual": RESIDUAL, "bert": BERT}
ADAMW = ("precision=fp32", "optimizer={target: adamw, lr: 0.001, max_grad_norm: 1.0}")


def ids(size: int = 20) -> Any:
    from datasets import Dataset

    tokens = torch.randint(300, (size, 17), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"inputs": tokens[:, :-1].tolist(), "labels": tokens[:, 1:].tolist()})


def texts() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"inputs": ["some words of a text"] * 20, "labels": [0, 1, 2, 0] * 5})


class Real:
    """The same steps, with memory."""

    def __init__(self, config: Config) -> None:
        task = make_task(config)
        sets = normalized(open_datasets(config, task.columns), config)
        self.like = sets.trial(0, 8)
        accelerator, ranks = connect(config)
        self.learner = make_learner(config, task, accelerator, 1, ranks, sets.fitted)
        self.stepper = Stepper.of(self.learner, list(by_term(task.loss_weight(self.like))))
        self.stepper.step(self.batches(2, 1))  # the optimizer makes its state

    def batches(self, samples: int, steps: int) -> list[Batch]:
        places = torch.arange(samples) % 8
        return [{name: column[places] for name, column in self.like.items()} for _ in range(steps)]

    def held(self, batches: list[Batch]) -> int:
        module = self.learner.module
        state = tensors_of(self.learner.optimizer.state)
        of_batches = [column for batch in batches for column in batch.values()]
        return stored_bytes(
            [*module.parameters(), *module.buffers(), *state, *self.stepper.buckets, *of_batches]
        )

    def counted(self, samples: int, steps: int) -> int:
        """By the counter of other tests, that of torch's storages."""
        batches = self.batches(samples, steps)
        held = self.held(batches)
        with LiveBytes() as live:
            self.stepper.step(batches)
        return held + live.peak

    def allocated(self, samples: int, steps: int) -> int:
        batches = self.batches(samples, steps)
        held = self.held(batches)
        allocated = AllocatedPeak()
        allocated.start()
        self.stepper.step(batches)
        return held + allocated.stop()


def config_of(folder: Path, *overrides: str) -> Config:
    return load(argv(folder, *ADAMW, *overrides)).config


def table() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"inputs": torch.rand(20, 100).tolist(), "labels": [0, 1] * 10})


def test_a_normalized_table_is_scaled_in_float64(tmp_path: Path) -> None:
    """While it is scaled, a float32 row has two more of its size in float64 beside it, of which one
    stays a while.
    """
    config = config_of(
        tmp_path,
        "data.source=tests.memory.test_predict.table",
        "model={target: mlp, args: {inputs: 100, hidden: [4], outputs: 2}}",
        "data.normalize=true",
        "task=classification",
        "on_nonfinite=stop",  # reads the norm, which a trace makes up
    )
    foresight = foresee(config, "cpu", sizes=(1, 128))
    real = Real(config)

    assert not foresight.failures
    for samples, steps in ((1, 1), (5, 2), (128, 1)):
        assert abs(foresight.peak(samples, steps) - real.counted(samples, steps)) <= 16, (
            samples,
            steps,
        )


@pytest.mark.parametrize("net", NETS)
def test_a_peak_is_that_of_the_allocator(tmp_path: Path, net: str) -> None:
    """At sizes that were not traced, too; to the few bytes that the loop keeps of the steps before."""
    config = config_of(tmp_path, *NETS[net])
    foresight = foresee(config, "cpu", sizes=(1, 128))
    real = Real(config)

    assert not foresight.failures
    for samples, steps in ((1, 1), (1, 2), (5, 2), (16, 1)):
        if net != "residual":  # convolutions have more in use than tensors show
            assert abs(foresight.peak(samples, steps) - real.counted(samples, steps)) <= 16, (
                samples,
                steps,
            )
    assert foresight.peak(100, 2) == pytest.approx(real.allocated(100, 2), rel=0.01)
    # Weights and two moments; a gradient stays between micro-steps.
    numbers = sum(p.numel() for p in real.learner.parameters)
    anatomy = foresight.anatomy(16, 2)
    assert anatomy["gradients"] == foresight.gradients == 4 * numbers
    assert (
        anatomy["optimizer"]
        == foresight.optimizer
        == 8 * numbers + 4 * len(real.learner.parameters)
    )


def test_bf16_parameters_keep_wide_sums_of_their_gradients(tmp_path: Path) -> None:
    config = config_of(tmp_path, *GPT, "model.dtype=bf16")
    foresight, real = foresee(config, "cpu"), Real(config)

    numbers = sum(p.numel() for p in real.learner.parameters)
    assert (foresight.weights, foresight.gradients) == (2 * numbers, 4 * numbers)
    assert abs(foresight.peak(5, 2) - real.counted(5, 2)) <= 16


def test_less_memory_is_foreseen_as_it_is(tmp_path: Path) -> None:
    """Of 80 samples of 16 tokens, chunked_loss takes 1,024 at a time: a fit of 2 and 3 samples
    misses that.
    """
    config = config_of(tmp_path, *GPT)
    foresight = foresee(config, "cpu", VARIANTS, (8, 80))

    assert set(foresight.peaks) == set(VARIANTS)
    for name, memory in (
        (CHECKPOINTED, {"activation_checkpointing": True}),
        (CHUNKED, {"chunked_loss": True}),
        (CHUNKED_AND_CHECKPOINTED, {"activation_checkpointing": True, "chunked_loss": True}),
    ):
        real = Real(replace(config, memory=replace(config.memory, **memory)))
        assert abs(foresight.peak(80, 2, variant=name) - real.counted(80, 2)) <= 16, name
        assert foresight.peak(80, 2, variant=name) < foresight.peak(80, 2)


def test_an_average_of_the_weights_is_one_more_copy(tmp_path: Path) -> None:
    plain = foresee(config_of(tmp_path, *GPT), "cpu")
    averaged = foresee(config_of(tmp_path, *GPT, "ema.decay=0.9"), "cpu")

    assert averaged.peak(4, 2) - plain.peak(4, 2) == plain.weights


class Reading(nn.Module):
    """Asks its own numbers which way to go."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs)
        return outputs if outputs.sum().item() > 0 else 2 * outputs


def test_a_model_that_cannot_be_traced_is_said_so_with_what_is_known(tmp_path: Path) -> None:
    words = argv(
        tmp_path, "precision=fp32", "model={target: tests.memory.test_predict.Reading, args: {}}"
    )

    foresight = trace_in_subprocess(words, "cpu")

    assert "DataDependentOutputException" in foresight.failures[AS_CONFIGURED]
    assert not foresight.peaks
    assert (foresight.weights, foresight.gradients, foresight.optimizer) == (84, 84, None)


def test_a_peak_is_the_largest_of_many_lines() -> None:
    """One operation is the largest up to 4 samples, another from there on: a line through two peaks
    misses it.
    """

    def recorded(samples: int) -> RecordedStep:
        live = [[100, 0, 0, 0, 10 * samples], [20, 0, 0, 0, 30 * samples], [90, 0, 0, 0, 0]]
        return RecordedStep(samples, ["first", "second", "third"], live)

    peaks = fit(recorded(2), recorded(3))

    assert [moment.operation for moment in peaks.moments] == ["first", "second"]
    for samples in (1, 2, 3, 4, 5, 32):
        assert peaks.at(samples) == max(100 + 10 * samples, 20 + 30 * samples)
    assert peaks.anatomy(32)["activations"] == 960
    assert Peaks.from_dict(peaks.as_dict()) == peaks


def test_steps_of_other_operations_are_not_fitted() -> None:
    first, second = (
        RecordedStep(2, ["mul"], [[0, 0, 0, 0, 8]]),
        RecordedStep(3, ["add"], [[0, 0, 0, 0, 12]]),
    )

    with pytest.raises(OtherOperations, match="or others"):
        fit(first, second)
