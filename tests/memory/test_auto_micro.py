"""batch.micro=auto on real runs, on a memory that the test limits and a clock that it holds."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import Trace, argv, record
from tests.live_bytes import LiveBytes
from tests.memory.test_fits import foresight
from tests.memory.test_predict import GPT, Real
from train.accumulate import compute_gradient
from train.config import load
from train.config.recipe import ImageForm
from train.distributed.ranks import Ranks
from train.main import main
from train.memory import auto_micro
from train.memory.cache_file import cache_key, read_cached, write_cached
from train.memory.memory_trace import AS_CONFIGURED, MemoryTrace, save_trace, saved_trace
from train.memory.restore import restored_afterwards
from train.memory.search import candidates
from train.plan.make import prepare

GIB = 2**30
SHARE = 24


class Net(nn.Module):
    """(samples, 6) -> (samples, 3). With statistics, masks and a generator of its own."""

    seconds = 0.0
    """What all forward passes would have taken: 0.1 for each, and 1 for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 64), nn.BatchNorm1d(64, momentum=0.5), nn.Dropout(0.5), nn.Linear(64, 3)
        )
        self.own = torch.Generator().manual_seed(3)

    def forward(self, inputs: Tensor) -> Tensor:
        Net.seconds += 0.1 + len(inputs)
        outputs = self.layers(inputs)
        return outputs + (torch.rand(1, generator=self.own).item() if self.training else 0.0)


RUN = (
    "model={target: tests.memory.test_auto_micro.Net, args: {}}",
    "optimizer={target: adamw, lr: 0.01}",
    "duration={steps: 2}",
    "batch.exact=ignore",
    "data.eval_fraction=0.3",
    "data.args.size=200",
)


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def arguments_of(folder: Path, world_size: int, *overrides: str) -> list[str]:
    return argv(folder, *RUN, f"batch.effective={SHARE * world_size}", *overrides)


def needed(arguments: list[str], world_size: int) -> dict[int, int]:
    """{micro-batch: bytes of a step}, counted by the counter of other tests on a model of its own."""
    real, found = Real(load(arguments).config), {}
    for size in candidates(SHARE)[1:]:  # BatchNorm takes no single sample
        # Of several ranks each keeps its gradients, as one does between micro-steps.
        steps = 2 if world_size > 1 or size < SHARE else 1
        batches = real.batches(size, 1) * steps
        held = real.held(batches)
        with LiveBytes() as live:
            real.stepper.step(batches)
        found[size] = held + live.peak
    return found


def untraced(*_: Any) -> MemoryTrace:
    return MemoryTrace(target="cpu", sample_bytes=0)


def search(arguments: list[str], limits: list[int], folder: str) -> tuple[Trace, dict[str, Any]]:
    """On this rank, which has a limit of its own; and plan.json."""
    import os

    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    auto_micro.trace_in_subprocess = untraced  # type: ignore[assignment]
    limit = limits[int(os.environ.get("RANK", "0"))]
    trace = record([*arguments, "batch.micro=auto", f"memory.limit_gib={limit / GIB!r}"])
    return trace, json.loads((Path(folder) / "run" / "plan.json").read_text())


@pytest.mark.parametrize("world_size", [2])  # of one rank: the tests of what is predicted
def test_the_largest_that_fits_on_all_ranks(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    """Of two ranks one has room for 12 samples, the other for 6; the run is that of this
    micro-batch, bit for bit.
    """
    arguments = arguments_of(tmp_path, world_size)
    of_size = needed(arguments, world_size)
    limits = [(of_size[12] + of_size[24]) // 2, (of_size[6] + of_size[8]) // 2][-world_size:]
    assert of_size[6] + 100 < limits[-1] < of_size[8] - 100

    found = run_ranks(world_size, search, arguments, limits, str(tmp_path))

    for trace, plan in found:
        assert plan["micro_search"]["largest_fitting"] == 6
        assert plan["micro_search"]["source"] == "searched"
        chosen = plan["micro_search"]["chosen"]
        assert plan["batch"]["micro"] == chosen <= 6
        assert max(trace.sizes[0]) == chosen
        assert plan["batch"]["effective"] == SHARE * world_size
        assert set(plan["micro_search"]["samples_per_second"]) <= {"2", "4", "6"}
    expected = run_ranks(world_size, record, [*arguments, f"batch.micro={chosen}", "name=stated"])
    for (trace, _), stated in zip(found, expected, strict=True):
        assert trace.sizes == stated.sizes
        assert all(map(np.array_equal, trace.weights, stated.weights))


def test_a_later_stage_has_more_micro_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on which 24 samples fit where they are the step, and not where gradients of 24 others
    stay beside.
    """
    monkeypatch.setattr(auto_micro, "trace_in_subprocess", untraced)
    arguments = argv(
        tmp_path, *RUN, "batch.schedule={0: 24, 72: 96}", "optimizer.lr_on_schedule=keep"
    )
    real = Real(load([*arguments, "batch.micro=24"]).config)
    peaks = []
    for steps in (1, 2):
        batches = real.batches(24, 1) * steps
        held = real.held(batches)
        with LiveBytes() as live:
            real.stepper.step(batches)
        peaks.append(held + live.peak)
    limit = sum(peaks) / 2

    record([*arguments, "batch.micro=auto", f"memory.limit_gib={limit / GIB!r}"])

    assert peaks[0] + 100 < limit
    found = json.loads((tmp_path / "run" / "plan.json").read_text())["micro_search"]
    assert found["largest_fitting"] == 12


def test_the_smallest_within_three_percent_is_chosen_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass takes 0.1 and 1 for each sample: 4 at once are 2 % slower than 24, and 2 are 5
    % slower.
    """
    monkeypatch.setattr(auto_micro, "CLOCK", lambda: Net.seconds)
    monkeypatch.setattr(auto_micro, "trace_in_subprocess", untraced)
    arguments = arguments_of(tmp_path, 1, "batch.micro=auto")

    def searched(name: str) -> dict[str, Any]:
        record([*arguments, f"name={name}"])
        return json.loads((tmp_path / name / "plan.json").read_text())["micro_search"]

    found = searched("first")
    assert (found["largest_fitting"], found["chosen"]) == (24, 4)
    assert found["samples_per_second"]["24"] == pytest.approx(24 / 24.1)
    assert found["samples_per_second"]["4"] == pytest.approx(24 / (6 * 4.1))
    assert found["predicted"] is None

    again = searched("again")
    assert again == found | {"source": "remembered"}

    # What was remembered is tried: where it no longer fits, all begins anew.
    monkeypatch.setattr(auto_micro, "limit_of", lambda *_: needed(arguments, 1)[2] + 100)
    smaller = searched("smaller")
    assert (smaller["largest_fitting"], smaller["source"]) == (2, "searched")


def test_an_evaluation_has_a_size_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients more samples fit at once."""
    monkeypatch.setattr(auto_micro, "trace_in_subprocess", untraced)
    arguments = arguments_of(tmp_path, 1)
    limit = needed(arguments, 1)[2] + 100

    record([*arguments, "batch.micro=auto", f"memory.limit_gib={limit / GIB!r}"])

    found = json.loads((tmp_path / "run" / "plan.json").read_text())["micro_search"]
    assert found["chosen"] <= 2 < found["evaluation"]


@pytest.mark.usefixtures("leaves_files_open")
def test_a_prediction_is_where_the_search_begins_and_is_held_against_the_allocator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that can be traced, on a limit for 6 samples: two probes, the one that fits and the
    next.
    """
    arguments = arguments_of(tmp_path, 1, *GPT, "data.args.size=100", "precision=fp32")
    of_size = needed(arguments, 1)
    asked, fits = [], auto_micro.Probe.fits

    def watched(self: Any, samples: int, steps: int) -> bool:
        asked.append(samples)
        return fits(self, samples, steps)

    monkeypatch.setattr(auto_micro.Probe, "fits", watched)
    limit = f"memory.limit_gib={(of_size[6] + of_size[8]) / 2 / GIB!r}"

    assert (
        main([*arguments, "batch.micro=auto", limit, "--smoke"], "accumulate", compute_gradient)
        == 0
    )

    output = capsys.readouterr().out
    assert asked == [6, 8]
    assert "the largest that fits: 6" in output
    missed = re.search(r"the peak of a step was predicted to ([+-][0-9.]+)%", output)
    assert missed is not None
    assert abs(float(missed[1])) <= 1.0


@pytest.mark.usefixtures("leaves_files_open")
def test_where_not_one_sample_fits_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auto_micro, "trace_in_subprocess", untraced)

    with pytest.raises(SystemExit) as ended:
        main(
            arguments_of(tmp_path, 1, "batch.micro=auto", "memory.limit_gib=1e-6"),
            "accumulate",
            compute_gradient,
        )

    assert ended.value.code == 1
    assert "not one sample at a time fits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loop", "override", "says"),
    [
        ("standard", "batch.micro=auto", "batch.micro=all"),
        ("accumulate", "batch={micro: auto, accumulation_steps: 2}", "batch.accumulation_steps"),
    ],
)
def test_what_auto_cannot_be_beside(
    tmp_path: Path, loop: str, override: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments_of(tmp_path, 1, override), loop, compute_gradient) == 2

    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("shares", "expected"), [("equal", 240), ("[1]", None)])
def test_ranks_of_unequal_shares_are_held_against_no_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: str, expected: int | None
) -> None:
    """It is that of the rank with the largest share."""
    monkeypatch.setattr(auto_micro, "saved_trace", lambda *_: foresight())
    loaded = load(
        [*arguments_of(tmp_path, 1, "batch.micro=all", f"batch.shares={shares}"), "--smoke"]
    )
    learner: Any = SimpleNamespace(
        device=torch.device("cpu"), parallel=SimpleNamespace(is_sharded=False)
    )

    prepared = auto_micro.choose_micro_batch(
        prepare(loaded, "accumulate", Ranks()), learner, None, loaded, Ranks()
    )  # type: ignore[arg-type]

    assert prepared.plan.predicted_peak == expected


def test_an_answer_is_of_the_code_it_was_found_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = SimpleNamespace(device=torch.device("cpu"))
    search: Any = SimpleNamespace(
        loaded=load(arguments_of(tmp_path, 1)), learner=learner, ranks=Ranks()
    )
    search.probe, search.share, search.largest_share, search.evaluated = (
        SimpleNamespace(like={}, limit=1),
        24,
        24,
        60,
    )
    before = auto_micro._Search._facts(search)

    assert auto_micro._Search._facts(search) == before
    monkeypatch.setattr(auto_micro, "source_hash", lambda config: "edited since")
    assert auto_micro._Search._facts(search) != before


def test_nothing_is_left_of_what_was_tried(tmp_path: Path) -> None:
    """Weights, statistics, the optimizer, all generators and plain attributes, bit for bit."""
    real = Real(load(arguments_of(tmp_path, 1)).config)
    learner, net = real.learner, real.learner.module

    def everything() -> list[Any]:
        state = [value for of in learner.optimizer.state.values() for value in of.values()]
        tensors = [
            *net.parameters(),
            *net.buffers(),
            *state,
            torch.get_rng_state(),
            net.own.get_state(),
        ]
        numbers = [group["lr"] for group in learner.optimizer.param_groups]
        return [
            *(tensor.detach().clone() for tensor in tensors),
            torch.tensor(numbers),
            np.random.get_state()[1].copy(),
        ]

    before, storages = everything(), [p.data_ptr() for p in net.parameters()]
    with restored_afterwards(learner):
        real.stepper.step(real.batches(5, 2))
        with torch.no_grad():
            next(net.parameters()).add_(1.0)
        np.random.rand(3)
        inside = everything()
    after = everything()

    assert not all(np.array_equal(a, b) for a, b in zip(before, inside, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert storages == [p.data_ptr() for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())


def test_what_is_remembered_is_of_these_facts_alone(tmp_path: Path) -> None:
    first, second = cache_key({"model": "a", "share": 4}), cache_key({"share": 4, "model": "b"})
    write_cached("some", first, {"chosen": 3})

    assert first != second
    assert first == cache_key({"share": 4, "model": "a"})
    assert read_cached("some", first) == {"chosen": 3}
    assert read_cached("some", second) is None
    (tmp_path / "cache" / "isobatch" / "some.json").write_text("{")
    assert read_cached("some", first) is None


def test_another_code_and_other_images_are_other_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "net_of_mine.py"
    code.write_text("from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = load(
        argv(tmp_path, "model={target: net_of_mine.Net, args: {in_features: 6, out_features: 3}}")
    ).config
    search: Any = SimpleNamespace(
        loaded=SimpleNamespace(config=config),
        learner=SimpleNamespace(device=torch.device("cpu")),
        probe=SimpleNamespace(like={}),
        ranks=SimpleNamespace(world_size=1),
        share=8,
        largest_share=8,
        evaluated=0,
    )

    before = auto_micro._Search._facts(search)
    assert auto_micro._Search._facts(search) == before
    code.write_text(code.read_text().replace("pass", "wide = True"))
    assert auto_micro._Search._facts(search) != before

    small, large = (
        replace(config, data=replace(config.data, image=ImageForm(size=size))) for size in (32, 224)
    )
    save_trace(MemoryTrace(target="cpu", sample_bytes=8, peaks={AS_CONFIGURED: {}}), small)
    assert saved_trace(small, "cpu") is not None
    assert saved_trace(large, "cpu") is None
