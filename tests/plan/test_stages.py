"""A batch schedule: the same curve on any ranks, from any place; against a loop by hand in plain
PyTorch.
"""

import json
import math
import shlex
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tests.data.test_by_length import LENGTH, TEXTS
from tests.data.test_stream import numbers, of_all_ranks, told
from tests.exactness.test_lone_sample import MODEL
from tests.helpers import Array, Trace, argv, distance, flat, record, rows, tiny
from tests.test_resume import segment
from train.accumulate import compute_gradient
from train.batch import make_plan, sample_ids
from train.batch.window import Place
from train.config import ConfigError, load
from train.data.reading import Reader
from train.data.stream import Stream
from train.main import main
from train.optim.lr_schedule import Rate, RateInStages
from train.plan.make import show_plan
from train.plan.stages import Staircase, in_stages
from train.plan.steps import PlanError, plan_batch

SCHEDULE = "batch.schedule={0: 5, 30: 8, 71: 16}"
# of three epochs of 37 samples, counted by hand
STEPS = [5, 5, 5, 5, 5, 5, 7, 8, 8, 8, 8, 5, 16, 16, 5]
STAGES = [5] * 6 + [8] * 6 + [16] * 3  # the effective batch of each
OWN = (
    SCHEDULE,
    "duration={samples: 111}",
    "optimizer={target: adamw, lr: 0.01, args: {weight_decay: 0.1}, lr_scaling: sde, lr_reference_batch: 8}",
    "schedule={name: cosine, warmup_samples: 12}",
)


def by_hand(weights: Array, on_schedule: str) -> tuple[Array, list[float]]:
    """(weights after the last step, rates) of a loop in plain PyTorch, float64."""
    module = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ).double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), module.parameters())
    optimizer = torch.optim.AdamW(module.parameters())
    data = tiny().with_format("torch", dtype=torch.float64)[:]
    order = np.concatenate([sample_ids(37, 0, epoch, 0, 37) for epoch in range(3)])
    rates = []
    for end, size, effective in zip(accumulate(STEPS), STEPS, STAGES, strict=True):
        seen, kappa = end - size, (effective if on_schedule == "rescale" else 5) / 8
        rising, falling = (
            (seen + effective) / 12,
            (1 + math.cos(math.pi * (max(seen, 12) - 12) / (111 - 12))) / 2,
        )
        rates.append(0.01 * math.sqrt(kappa) * (rising if seen + effective <= 12 else falling))
        optimizer.param_groups[0].update(
            lr=rates[-1],
            betas=(0.9**kappa, 0.999**kappa),
            eps=1e-8 / math.sqrt(kappa),
            weight_decay=0.1 * math.sqrt(kappa),
        )
        chosen = torch.from_numpy(order[seen:end].copy())
        optimizer.zero_grad()
        cross_entropy(module(data["inputs"][chosen]), data["labels"].long()[chosen]).backward()
        optimizer.step()
    return flat(list(module.parameters())), rates


@pytest.mark.parametrize(
    ("ranks", "micro", "on_schedule"),
    [(1, "all", "keep"), (2, "all", "rescale"), (3, 1, "rescale")],
)
def test_is_the_curve_of_a_loop_by_hand(
    run_ranks: Any, tmp_path: Path, ranks: int, micro: int | str, on_schedule: str
) -> None:
    arguments = argv(
        tmp_path, *OWN, f"batch.micro={micro}", f"optimizer.lr_on_schedule={on_schedule}"
    )

    traces: list[Trace] = run_ranks(ranks, record, arguments)

    first = traces[0]
    expected, rates = by_hand(first.weights[0], on_schedule)
    assert [window.samples for window in first.windows] == STEPS
    assert list(first.rates.values()) == pytest.approx(rates, rel=1e-12)
    for trace in traces:
        assert distance(trace.weights[-1], expected) < 1e-12
        assert max(size for sizes in trace.sizes for size in sizes) <= (
            -(-5 // ranks) if micro == "all" else micro
        )
    logged = rows(tmp_path)
    assert [row["batch/effective_size"] for row in logged] == STEPS
    assert [row["train/learning_rate"] for row in logged] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize(
    "source", [(), ("data.source=tests.helpers.stream", "data.shuffle_buffer=16")]
)
def test_resumes_in_the_middle_of_a_stage_on_other_ranks(
    run_ranks: Any, tmp_path: Path, source: tuple[str, ...]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    given = (*OWN, "checkpoint={every_steps: 4, resume: auto}", "batch.micro=2", *source)

    (uninterrupted,) = run_ranks(1, segment, argv(whole, *given), "accumulate")
    run_ranks(2, segment, argv(parts, *given), "accumulate", 11)
    after = run_ranks(3, segment, argv(parts, *given), "accumulate")

    assert min(after[0].ids) == 9
    together = {k: [i for rank in after for i in rank.ids[k]] for k in after[0].ids}
    assert together == {k: uninterrupted.ids[k] for k in range(9, 16)}
    assert [len(ids) for ids in uninterrupted.ids.values()] == STEPS
    for rank in after:
        assert distance(rank.weights, uninterrupted.weights) < 1e-12
        assert distance(rank.moments, uninterrupted.moments) < 1e-12
    assert [row["batch/effective_size"] for row in rows(parts)] == STEPS


def test_texts_by_length_follow_it(run_ranks: Any, tmp_path: Path) -> None:
    given = (*TEXTS, SCHEDULE, "duration={samples: 111}")
    (whole,) = run_ranks(1, record, argv(tmp_path, *given))

    traces: list[Trace] = run_ranks(
        2, record, argv(tmp_path, *given, f"batch.micro_tokens={2 * LENGTH}")
    )

    assert [window.samples for window in traces[0].windows] == STEPS
    for k, ids in enumerate(whole.ids):
        assert sorted(i for trace in traces for i in trace.ids[k]) == sorted(ids)
    assert distance(traces[0].weights[-1], whole.weights[-1]) < 1e-12
    assert max(len(sizes) for sizes in traces[0].sizes) >= 4


@pytest.mark.parametrize(
    ("schedule", "code", "message"),
    [
        ("{0: 6, 12: 9}", 2, "step 10 takes 1 sample, the tail of an epoch"),
        ("{0: 6, 12: 8}", 0, ""),
    ],
)
def test_a_lone_sample_of_any_stage_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: str, code: int, message: str
) -> None:
    """37 = 6 + 6 + 9 + 9 + 7, then 9 x 4 + 1; or 6 + 6 + 8 + 8 + 8 + 1, where the first epoch has
    one, too.
    """
    samples = 74 if code else 28

    assert (
        main(
            argv(tmp_path, MODEL, f"batch.schedule={schedule}", f"duration={{samples: {samples}}}"),
            "accumulate",
            compute_gradient,
        )
        == code
    )

    assert message in capsys.readouterr().err


def walked(stages: dict[int, int], size: int | None, steps: int) -> list[int]:
    """The samples of each step, one step after the other."""
    found: list[int] = []
    for _ in range(steps):
        seen = sum(found)
        effective = stages[max(start for start in stages if start <= seen)]
        found.append(min(effective, size - seen % size) if size else effective)
    return found


@given(
    later=st.dictionaries(st.integers(1, 150), st.integers(1, 40), max_size=3),
    first=st.integers(1, 40),
    size=st.none() | st.integers(1, 70),
    wanted=st.integers(0, 200),
)
def test_counts_steps_and_samples(
    later: dict[int, int], first: int, size: int | None, wanted: int
) -> None:
    stages = {0: first, **later}
    plan = in_stages(make_plan(first, "all", None, world_size=2, dataset_size=size), stages, None)
    steps = walked(stages, size, 60)

    seen = [0, *accumulate(steps)]
    assert [plan.samples_after(k) for k in range(61)] == seen
    if wanted <= seen[-1]:
        assert plan.steps_for(wanted) == next(k for k in range(61) if seen[k] >= wanted)
    if isinstance(plan, Staircase):
        starts = [start for start in sorted(stages) if start <= seen[-1]]
        reached = [1 + next(k for k in range(61) if seen[k] >= start) for start in starts]
        assert plan.first_steps()[: len(reached)] == reached
        for before, samples in zip(seen, steps, strict=False):
            stage = plan.at(before)
            assert samples <= stage.effective
            assert stage.micro <= plan.micro
            assert stage.accumulation_steps * stage.micro >= -(-stage.effective // 2)


@settings(max_examples=15)
@given(
    size=st.integers(1, 40),
    later=st.dictionaries(st.integers(1, 60), st.integers(1, 20), min_size=1, max_size=3),
    first=st.integers(1, 20),
    ranks=st.integers(1, 3),
)
def test_a_stream_is_cut_as_data_of_known_length(
    size: int, later: dict[int, int], first: int, ranks: int
) -> None:
    data = Stream(numbers(size), Reader({"n": "n"}), 0, by_rank=False)
    stages = {0: first, **later}
    plan = in_stages(
        make_plan(first, "all", None, world_size=ranks, dataset_size=None), stages, None
    )
    steps = walked(stages, size, 9)

    parts = of_all_ranks(data, plan, Place(), 9)

    assert list(map(len, told(parts))) == steps
    flat_ids = [n for step in told(parts) for n in step]
    assert flat_ids == [place % size for place in range(sum(steps))]
    ends = [end % size == 0 for end in accumulate(steps)]
    assert [part.last_of_epoch for part in parts[0]] == ends
    seen = sum(steps[:4])
    rest = of_all_ranks(data, plan, Place(seen // size, seen % size, seen), 5)
    assert told(rest) == told(parts)[4:]


@given(
    name=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup=st.integers(0, 20),
    total=st.integers(1, 40),
    decay=st.integers(0, 40),
    size=st.integers(1, 9),
)
def test_where_the_size_never_changes_the_rate_is_that_of_steps(
    name: str, warmup: int, total: int, decay: int, size: int
) -> None:
    plain = Rate(0.1, name, warmup, total, 0.1, min(decay, total))
    over_samples = Rate(1.0, name, warmup * size, total * size, 0.1, min(decay, total) * size)
    staged = RateInStages(
        **vars(plain), over_samples=over_samples, stages=((0, size, 0.1), (3 * size, size, 0.1))
    )

    for k in range(1, total + 1):
        assert staged.at(k, (k - 1) * size) == pytest.approx(plain.at(k), rel=1e-12)


def test_a_schedule_in_tokens_is_that_of_its_blocks(tmp_path: Path) -> None:
    tokens = ("data.block_size=16", "batch.schedule_tokens={0: 64, 1000: 128}")
    config = load(argv(tmp_path, *tokens)).config

    plan = plan_batch(config, "accumulate", 2, None)

    assert plan.stages == ((0, 4), (63, 8))  # 63 blocks are the first to hold 1,000 tokens
    assert (plan.effective, plan.micro, plan.accumulation_steps) == (4, 2, 1)
    assert (plan.at(62).effective, plan.at(63).effective, plan.at(63).accumulation_steps) == (
        4,
        8,
        2,
    )
    broken = load(argv(tmp_path, *tokens, "batch.schedule_tokens={0: 64, 1000: 100}")).config
    with pytest.raises(
        PlanError, match=r"batch\.schedule_tokens\.1000=100 is no whole number of blocks"
    ) as error:
        plan_batch(broken, "accumulate", 2, None)
    lines = shlex.split(str(error.value).partition("Set: ")[2])
    assert lines == [
        "batch.schedule_tokens={0: 64, 1000: 96}",
        "or",
        "batch.schedule_tokens={0: 64, 1000: 112}",
    ]
    assert load(argv(tmp_path, *tokens, lines[0])).config.batch.schedule_tokens == {0: 64, 1000: 96}


def test_the_whole_staircase_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = argv(
        tmp_path,
        *OWN,
        "schedule.final_fraction=0.1",
        "batch.schedule={0: 5, 30: 8, 71: 16, 500: 32}",
    )
    show_plan(load(words), "accumulate")

    shown = capsys.readouterr().out
    for line in (
        "batch     5 samples = 5 on 1 rank, in one micro-batch",
        "          from 30 samples on (step 7): 8 samples = 8 on 1 rank, in micro-batches of 4+4",
        "          from 71 samples on (step 13): 16 samples = 16 on 1 rank, in micro-batches of "
        "4+4+4+4",
        "          from 500 samples on (after the end of this run): 32 samples = 32 on 1 rank",
        "duration  15 steps = 111 samples = 3 epochs",
        "rate      peak 0.007906, 0.01, 0.01414, 0.02 in the stages of the batch, cosine to "
        "0.001414 after",
    ):
        assert line in shown


def test_the_standard_loop_refuses_what_grows_by_accumulation(tmp_path: Path) -> None:
    config = load(argv(tmp_path, SCHEDULE)).config

    with pytest.raises(
        PlanError, match=r"8 samples, from 30 samples on, are 2 micro-batches.*accumulation loop"
    ):
        plan_batch(config, "standard", 1, 37)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("batch.schedule={1: 8}", "its first stage begins at 0"),
        (
            "batch.schedule={0: 8, 9: 0}",
            "got 9: 0; a stage begins at 0 or more, and its batch is 1 or more",
        ),
        ("data.drop_tail=true", "it is about steps of one size"),
        ("data.overfit=2", "it is about steps of one size"),
        ("batch.effective=8", "exclude each other"),
        ("batch.schedule={a: 8}", "it takes a mapping of whole numbers"),
        ("batch.schedule=8", "it takes a mapping of whole numbers"),
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path: Path, override: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(argv(tmp_path, SCHEDULE, override))


def test_it_belongs_to_the_identity_and_its_form_does_not(tmp_path: Path) -> None:
    def derived(*overrides: str) -> dict[str, Any]:
        record(argv(tmp_path, "duration={steps: 2}", *overrides))
        found: dict[str, Any] = json.loads((tmp_path / "run/plan.json").read_text())["derived"]
        return found

    plain, one = derived("batch.effective=8"), derived("batch.schedule={0: 8}")
    two = derived("batch.schedule={0: 8, 20: 16}")
    other = derived("batch.schedule={0: 8, 21: 16}")

    assert plain["curve_hash"] == one["curve_hash"]
    assert len({plain["curve_hash"], two["curve_hash"], other["curve_hash"]}) == 3
    assert (one["effective_batch"], two["effective_batch"], two["batch_schedule"]) == (
        8,
        None,
        "0: 8, 20: 16",
    )


def test_the_peak_of_a_run_is_that_of_its_largest_stage(tmp_path: Path) -> None:
    record(argv(tmp_path, *OWN, "batch.schedule={0: 5, 30: 8, 71: 16, 500: 32}"))

    plan = json.loads((tmp_path / "run/plan.json").read_text())
    # 500 is after the end
    assert plan["derived"]["lr_peak"] == pytest.approx(0.01 * math.sqrt(16 / 8))
