"""Each row of the table "where does X go" in docs/design.md, tried: the smallest thing that works,
in its place.

What a later change puts there for good has tests of its own; these show that the place is enough
for it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train.run
from tests.helpers import Trace, argv, distance, record, rows
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.config.annotations import one_of
from train.config.keys import KEYS
from train.distributed.parallel import Parallel
from train.distributed.replicated import Replicated
from train.errors import RankFailed
from train.main import main
from train.optim import batch_scaling
from train.optim.batch_scaling import Factors
from train.parts import Metrics, Part
from train.report import Reporter
from train.setting import Setting
from train.step import ComputeGradient, Learner

MakePart = Callable[[Setting], Part]


def with_part(monkeypatch: pytest.MonkeyPatch, make: MakePart, before: str | None = None) -> None:
    """One more entry in run.list_parts: at the end, or inside the part named `before`."""
    everything = train.run.list_parts

    def more(setting: Setting, report: Reporter) -> Sequence[Part]:
        parts = list(everything(setting, report))
        names = [part.name for part in parts]
        parts.insert(names.index(before) if before else len(parts), make(setting))
        return tuple(parts)

    monkeypatch.setattr("train.run.list_parts", more)


def test_a_new_way_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """distributed/stop.py: whoever calls `ask` says why. Here a part does, once the loss is low
    enough.
    """

    def make(setting: Setting) -> Part:
        def good_enough(metrics: Metrics) -> Metrics:
            setting.stop.ask("a loss that is good enough")
            return metrics

        return Part(name="good_enough", metrics=good_enough)

    with_part(monkeypatch, make)

    assert main(argv(tmp_path, "duration={epochs: 100}"), "accumulate", compute_gradient) == 75
    assert (
        '"reason": "stopped by a loss that is good enough"'
        in (tmp_path / "run" / "ended.json").read_text()
    )


def test_a_new_gauge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """metrics/NAME.py; docs/guide/gauge.md adds one by hand, as a user would."""

    def make(setting: Setting) -> Part:
        def measured(metrics: Metrics) -> Metrics:
            weights = [p.detach() for p in setting.learner.parameters]
            return {**metrics, "train/weight_norm": float(nn.utils.get_total_norm(weights))}

        return Part(name="weight_norm", metrics=measured)

    with_part(monkeypatch, make)
    trace = record(argv(tmp_path))

    last = rows(tmp_path)[-1]
    assert last["train/weight_norm"] == pytest.approx(
        float(np.linalg.norm(trace.weights[-1])), rel=1e-12
    )


class NaiveReduction(Replicated):
    """distributed/parallel.py, another kind of parallelism: one all-reduce a parameter, after the
    last backward.
    """

    def __init__(self, model: Any, ranks: Any) -> None:
        super().__init__(model, ranks)
        self._ranks = ranks

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        def reduced(learner: Learner, window: Window) -> Tensor:
            losses = compute_gradient(learner, window)
            for parameter in learner.parameters:
                assert parameter.grad is not None
                parameter.grad.div_(learner.world_size)
                self._ranks.add_up([parameter.grad])
            return losses

        return reduced


def train_both_ways(arguments: list[str], other: list[str]) -> tuple[Trace, Trace]:
    """(as DDP reduces, as NaiveReduction does)."""
    import train.setup

    ddp = record(arguments)

    def parallelize(module: nn.Module, accelerator: Any, ranks: Any, *_: Any) -> Parallel:
        return NaiveReduction(module, ranks)

    train.setup.parallelize = parallelize  # type: ignore[assignment]
    return ddp, record(other)


def test_another_kind_of_parallelism(run_ranks: Any, tmp_path: Path) -> None:
    several = [
        argv(tmp_path, "batch.micro=2", "optimizer.max_grad_norm=0.1", f"name={name}")
        for name in "ab"
    ]

    for ddp, naive in run_ranks(2, train_both_ways, *several):
        assert distance(naive.weights[-1], ddp.weights[-1]) <= 1e-12


def test_an_automatic_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """memory/find_micro_batch.py, called in run.build between the learner and the preflight: the
    plan is a value, so another micro-batch is another plan. Here the search is `half of a rank's
    share`.
    """
    prepare = train.run.prepare

    def prepare_and_search(*args: Any) -> Any:
        prepared = prepare(*args)
        batch = prepared.plan.batch
        smaller = dataclasses.replace(
            batch, micro=batch.micro // 2, accumulation_steps=2 * batch.accumulation_steps
        )
        return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, batch=smaller))

    whole = record(argv(tmp_path, "name=whole"))
    monkeypatch.setattr("train.run.prepare", prepare_and_search)
    halves = record(argv(tmp_path, "name=halves"))

    assert (whole.sizes[0], halves.sizes[0]) == ([8], [4, 4])
    assert distance(halves.weights[-1], whole.weights[-1]) <= 1e-12


def train_in_little_memory(
    arguments: list[str], whole: list[str]
) -> tuple[Trace, Trace, list[int]]:
    """(with room for all, where more than 2 samples at once do not fit on rank 1, sizes that were
    tried).
    """
    tried: list[int] = []

    def around(compute_gradient: ComputeGradient) -> ComputeGradient:
        def retried(learner: Learner, window: Window) -> Tensor:
            micro = max(window.micro_batches.sizes)
            while True:
                tried.append(micro)
                try:
                    return compute_gradient(learner, window.recut(micro))
                except (torch.OutOfMemoryError, RankFailed):
                    micro = micro // 2

        return retried

    def in_little_memory(learner: Learner, window: Window) -> Tensor:
        if learner.accelerator.process_index == 1 and max(window.micro_batches.sizes) > 2:
            raise torch.OutOfMemoryError("no room")
        return compute_gradient(learner, window)

    with_room = record(whole)
    with pytest.MonkeyPatch.context() as patch:
        with_part(
            patch,
            lambda setting: Part(name="oom_retry", gradient=around),
            before="rank_consistency",
        )
        little = record(
            [*arguments, "runtime.reduction=explicit"], compute_gradient=in_little_memory
        )
        return with_room, little, tried


def test_a_retry_after_out_of_memory(run_ranks: Any, tmp_path: Path) -> None:
    """gradients/oom_retry.py: a part that cuts the window again, around what measures the gradient.
    While a size is unproven the gradient is reduced explicitly: a failure on one rank then leaves
    no other waiting.
    """
    given = (
        "data.args.size=200",
        "duration={epochs: 2}",
        "noise_scale.every_steps=1",
        "optimizer.lr=0.01",
    )
    several = [argv(tmp_path, *given, f"name={name}") for name in ("little", "whole")]

    for whole, little, tried in run_ranks(2, train_in_little_memory, *several):
        assert tried[:2] == [4, 2]
        assert distance(little.weights[-1], whole.weights[-1]) <= 1e-12
    # Measured on what was computed in the end: other micro-batches, so another estimate of the same
    # scale.
    assert rows(tmp_path, "batch/noise_scale", "whole"), "the fixture measures no noise scale"
    assert rows(tmp_path, "batch/noise_scale", "little")


def test_a_new_scaling_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """optim/batch_scaling.py: one function in RULES, and its name beside lr_scaling in
    config/recipe.py.
    """
    monkeypatch.setitem(
        batch_scaling.RULES,
        "cube",
        lambda change: Factors(lr=change.kappa ** (1 / 3), lr_symbol="cbrt(kappa)"),
    )
    key = dataclasses.replace(KEYS["optimizer.lr_scaling"], values=one_of("cube"))
    monkeypatch.setitem(KEYS, "optimizer.lr_scaling", key)

    given = "optimizer={target: sgd, lr: 0.5, lr_scaling: cube, lr_reference_batch: 1}"
    trace = record(argv(tmp_path, given, "schedule.name=constant"))

    assert trace.rates[1] == pytest.approx(1.0)  # 8 samples are 8 times the reference


def test_the_rules_of_the_config_are_those_that_there_are() -> None:
    assert KEYS["optimizer.lr_scaling"].values == one_of(*batch_scaling.RULES)


def test_exact_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gradients/exact_dropout.py: the innermost part knows the step and swaps the class of each
    dropout in place. Here the mask is a function of (sample, step) alone, the same for every unit.
    """
    now = {"k": 0, "ids": torch.zeros(0)}

    class ByPlace(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            kept = (now["ids"] * 2654435761 + now["k"]) % 97 < 97 * (1 - self.p)
            return input * kept[:, None] / (1 - self.p)

    def make(setting: Setting) -> Part:
        task = setting.learner.task

        def watched(model: Any, batch: Any) -> Any:
            now["ids"] = batch["sample_id"]
            return type(task).loss_sum(task, model, batch)

        task.loss_sum = watched  # type: ignore[method-assign]
        for module in setting.learner.module.modules():
            if isinstance(module, nn.Dropout):
                module.__class__ = ByPlace

        def around(compute_gradient: ComputeGradient) -> ComputeGradient:
            def of_step(learner: Learner, window: Window) -> Tensor:
                now["k"] = window.k
                return compute_gradient(learner, window)

            return of_step

        return Part(name="exact_dropout", gradient=around)

    given = ("model={target: tests.test_places.Dropped, args: {}}", "batch.exact=ignore")
    native = [
        record(argv(tmp_path, *given, f"batch.micro={m}", f"name=native{m}")) for m in ("all", 2)
    ]
    with_part(monkeypatch, make, before="ema")
    exact = [
        record(argv(tmp_path, *given, f"batch.micro={m}", f"name=exact{m}")) for m in ("all", 2)
    ]

    assert distance(native[0].weights[-1], native[1].weights[-1]) > 1e-3, (
        "the fixture draws the same masks anyway"
    )
    assert distance(exact[0].weights[-1], exact[1].weights[-1]) <= 1e-12


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Two: of one alone, small micro-batches draw one after the other what the whole batch
        # draws.
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 8), nn.Dropout(0.4), nn.Linear(8, 3)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs
