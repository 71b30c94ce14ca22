"""Random numbers are a function of the place where they are drawn: whatever else draws before
changes none of them.

The user's code below draws where users' code does. What it drew is compared as numbers, or as the
losses of a run.
"""

import importlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.style
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers import Array, argv, flat, record, rows, tiny
from train.config import load
from train.data import open_datasets
from train.data.shares import DataError
from train.distributed.ranks import LaunchError, launched_rank
from train.errors import UserError
from train.exactness.recomputation import DrawsTwice
from train.exactness.same_model import DifferentModels
from train.loop import fit
from train.randomness import Generators, States, drawn_from, read_apart, seed_of_rank, seed_of_step
from train.run import Run, build
from train.step import ComputeGradient
from train.tasks.classification import Classification

HERE = "tests.test_randomness"


def stir(number: int) -> None:
    """What happened before in a process."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


# What users bring


class DrawnInConstructor(nn.Module):
    """Weights from NumPy, and a permutation that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(np.random.normal(size=(3, 6))).float())
        self.order = np.random.permutation(6)
        self.shift = random.random()

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs[:, self.order] + self.shift) @ self.weight.T


class OwnGenerator(DrawnInConstructor):
    """Its permutation comes from the system's entropy: another one in each process."""

    def __init__(self) -> None:
        super().__init__()
        # Entropy would give both ranks the same one in one of 720 runs.
        self.order = np.random.default_rng(
            int(np.random.default_rng().integers(2**60))
        ).permutation(6)


class Mixup(Classification):
    """Each micro-batch is mixed with itself in another order, by a weight from Python's generator."""

    def loss_sum(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        part = random.betavariate(0.4, 0.4)
        other = torch.from_numpy(np.random.permutation(len(batch["labels"])))
        logits = model(part * batch["inputs"] + (1 - part) * batch["inputs"][other])
        logits = logits + 0.1 * torch.randn(logits.shape)
        mine = cross_entropy(logits, batch["labels"], reduction="sum")
        return part * mine + (1 - part) * cross_entropy(
            logits, batch["labels"][other], reduction="sum"
        )

    def eval_sums(
        self, model: Any, batch: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        stir(random.randrange(100))
        return super().eval_sums(model, batch)


class InBlock(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.kind = kind

    def forward(self, inputs: Tensor) -> Tensor:
        draws = {
            "numpy": np.random.rand,
            "python": random.random,
            "torch": lambda: float(torch.rand(())),
        }
        return inputs + draws[self.kind]() * self.layer(inputs)


class Blocks(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), InBlock(kind)])
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        return self.head(inputs)


CALLS: list[int] = []


def split_at_random() -> dict[str, Dataset]:
    """A source that holds samples out by a generator that nobody has seeded."""
    CALLS.append(1)
    numbered = tiny(16).add_column("number", list(range(16)))
    order = np.random.permutation(16)
    return {"train": numbered.select(order[:12]), "test": numbered.select(order[12:])}


def from_entropy() -> Dataset:
    return Dataset.from_dict(
        {"inputs": np.random.default_rng().normal(size=(37, 6)), "labels": [0, 1, 2, 0] * 9 + [1]}
    )


def drawing_stream() -> IterableDataset:
    def noisy() -> Iterator[dict[str, Any]]:
        for row in tiny(37):
            yield row | {
                "inputs": [x + np.random.normal() + random.random() for x in row["inputs"]]
            }

    return IterableDataset.from_generator(noisy)


def drawing_transform(sample: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return sample | {
        "inputs": sample["inputs"] + np.random.normal() + random.random() + torch.rand(6)
    }


# Places


def test_seeds_of_steps_differ_in_the_bits_that_generators_look_at() -> None:
    firsts = [seed_of_rank(seed, rank) for seed in range(3) for rank in range(4)]
    low = {seed_of_step(first, k) & 0xFFFFFFFF for first in firsts for k in range(1, 2001)}

    # 24,000 numbers of 32 bits, drawn independently, would hold 0.07 pairs.
    assert len(low) >= 3 * 4 * 2000 - 2
    assert all(0 <= seed_of_step(first, 10**12) < 2**63 for first in firsts)


def test_all_generators_are_seeded_compared_and_put_back() -> None:
    generators = Generators()
    draws: list[tuple[str, Callable[[], object]]] = [
        ("Python's random", random.random),
        ("NumPy's random", np.random.rand),
        ("torch's on the CPU", lambda: torch.rand(1)),
    ]
    for name, draw in draws:
        generators.seed(7)
        before = generators.states()
        first = float(draw())  # type: ignore[arg-type]

        assert generators.states().moved_since(before) == [name]
        with generators.kept():
            stir(3)
        with drawn_from(5):
            draw()
        assert generators.states().moved_since(before) == [name]
        generators.restore(before)
        assert generators.states().moved_since(before) == []
        assert float(draw()) == first  # type: ignore[arg-type]
        # The value is that of the libraries themselves.
        stir(7)
        assert float(draw()) == first  # type: ignore[arg-type]


def test_items_that_are_read_apart() -> None:
    def drawn() -> Iterator[float]:
        while True:
            yield random.random() + np.random.rand() + float(torch.rand(()))

    stir(11)
    expected = [next(drawn()) for _ in range(4)]
    stir(1)
    outside: list[States] = []
    found = []
    for item in read_apart(drawn(), 11):
        found.append(item)
        outside.append(Generators().states())
        if len(found) == 2:
            stir(2)  # what happens between two items changes nothing
        if len(found) == 4:
            break

    assert found == expected
    assert outside[1].moved_since(outside[0]) == []


# A run


def losses(folder: Path, *overrides: str, prepare: Any = lambda run, trace: None) -> list[float]:
    folder.mkdir(exist_ok=True)
    record(argv(folder, *overrides), prepare=prepare)
    return [row["train/loss"] for row in rows(folder)]


def drawn_model(folder: Path, history: int) -> tuple[list[int], Array, Array]:
    """Permutation, first and last weights of a run in a process with this history."""
    stir(history)
    kept: dict[str, Any] = {}

    def look(run: Run, _: object) -> None:
        kept["order"] = run.learner.module.order.tolist()
        kept["weights"] = flat(run.learner.parameters)

    folder.mkdir(exist_ok=True)
    trace = record(
        argv(folder, f"model={{target: {HERE}.DrawnInConstructor, args: null}}"), prepare=look
    )
    return kept["order"], kept["weights"], trace.weights[-1]


def test_a_constructor_draws_from_the_seed(tmp_path: Path) -> None:
    first, second = (drawn_model(tmp_path / str(n), n) for n in (1, 2))

    assert first[0] == second[0]
    assert (first[1] == second[1]).all()
    assert (first[2] == second[2]).all()
    # By hand: as the libraries draw behind this seed.
    stir(0)
    assert (
        first[1] == np.random.normal(size=(3, 6)).astype(np.float32).astype(np.float64).ravel()
    ).all()
    assert first[0] == np.random.permutation(6).tolist()


def on_a_rank_with_a_history(folder: Path) -> tuple[list[int], Array, Array]:
    return drawn_model(folder, 100 + launched_rank())


def refused_on_a_rank(folder: Path, *overrides: str) -> tuple[str, str]:
    try:
        build(load(argv(folder, *overrides)), "accumulate")
    except UserError as error:
        return type(error).__name__, str(error)
    return "", ""


def test_two_ranks_hold_the_same_permutation_or_say_so(tmp_path: Path, run_ranks: Any) -> None:
    one, two = run_ranks(2, on_a_rank_with_a_history, tmp_path)
    refused = run_ranks(
        2, refused_on_a_rank, tmp_path, f"model={{target: {HERE}.OwnGenerator, args: null}}"
    )

    assert one[0] == two[0]
    assert (one[1] == two[1]).all()
    assert {kind for kind, _ in refused} <= {DifferentModels.__name__, ""}
    if refused[0][0]:  # one of 720 pairs of permutations is a pair of equal ones
        assert "rank 1 computes another loss or gradient than rank 0" in refused[0][1]


MIXUP = (f"task={HERE}.Mixup", "data.eval_split=train")


def reimport(run: Run, _: object) -> None:
    """Import the screen's library in the midst of a run: it draws once from Python's generator
    (rich 15).
    """
    ours = run.report.train_row

    def train_row(*args: Any) -> None:
        before = random.getstate()
        importlib.reload(rich.style)
        assert random.getstate() != before, "the import draws no more: this test tests nothing"
        ours(*args)

    run.report.train_row = train_row  # type: ignore[method-assign]


def test_neither_evaluation_nor_screen_nor_log_changes_a_draw(tmp_path: Path) -> None:
    plain = losses(tmp_path / "plain", *MIXUP)
    evaluated = losses(tmp_path / "evaluated", *MIXUP, "evaluate={every_steps: 1, at_start: true}")
    on_a_screen = losses(tmp_path / "screen", *MIXUP, prepare=reimport)
    saved = losses(tmp_path / "saved", *MIXUP, "checkpoint.every_steps=1")

    assert plain == evaluated
    assert plain == on_a_screen
    assert plain == saved
    assert plain != losses(tmp_path / "seed", *MIXUP, "seed=1")


def weights_at(folder: Path, last: int, total: int) -> Array:
    """Train from where the run is up to the step `last` of `total`, and save there."""
    resumed = ("checkpoint={resume: auto, every_steps: 1000}", "optimizer.target=adamw")
    run = build(load(argv(folder, *MIXUP, f"duration={{steps: {total}}}", *resumed)), "accumulate")
    compute: ComputeGradient = importlib.import_module("train.accumulate").compute_gradient

    def until() -> Iterator[Any]:
        for window in run.windows:
            yield window
            if window.k == last:
                return

    fit(replace(run, windows=until()), run.watch(compute))
    run.save()
    run.close("stopped", 75)
    return flat(run.learner.parameters)


def test_a_resume_draws_what_the_run_would_have_drawn(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = weights_at(tmp_path / "whole", 6, 6)
    weights_at(tmp_path / "cut", 3, 6)
    stir(5)
    cut = weights_at(tmp_path / "cut", 6, 6)

    assert (whole == cut).all()
    held = {file.name for file in (tmp_path / "cut/run/checkpoints/step-00000003").iterdir()}
    assert held == {"manifest.json", "model.safetensors", "optimizer.safetensors", "trainer.json"}


# Activation checkpointing


@pytest.mark.parametrize(
    ("kind", "name"), [("numpy", "NumPy's random"), ("python", "Python's random")]
)
def test_foreign_draws_in_a_checkpointed_block_are_refused_by_name(
    tmp_path: Path, kind: str, name: str
) -> None:
    model = f"model={{target: {HERE}.Blocks, args: {{kind: {kind}}}}}"

    with pytest.raises(DrawsTwice, match=rf"draws from {name} \(blocks\.1\)"):
        build(load(argv(tmp_path, model, "memory.activation_checkpointing=true")), "accumulate")


def test_other_draws_are_not(tmp_path: Path) -> None:
    checkpointed = "memory.activation_checkpointing=true"
    model = f"model={{target: {HERE}.Blocks, args: {{kind: {{}}}}}}"

    assert losses(tmp_path / "torch", model.replace("{}", "torch"), checkpointed)
    assert losses(tmp_path / "outside", model.replace("{}", "numpy"))


# Data


EVALUATED: list[int] = []


class Numbered(Classification):
    columns = ("inputs", "labels", "number")

    def eval_sums(
        self, model: Any, batch: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        EVALUATED.extend(batch["number"].tolist())
        return super().eval_sums(model, batch)


def samples_and_calls(arguments: Sequence[str]) -> tuple[list[int], list[int], int]:
    """Samples that this rank trained on and evaluated, by number; how often the source was called."""
    CALLS.clear()
    EVALUATED.clear()
    run = build(load(arguments), "accumulate")
    trained: list[int] = []
    for window in run.windows:
        for micro_batch in window.micro_batches:
            trained += micro_batch.batch["number"].tolist()
    run.evaluate()
    run.close("", 1)
    return trained, list(EVALUATED), len(CALLS)


SPLIT = (
    f"data={{source: {HERE}.split_at_random, eval_split: test}}",
    f"task={HERE}.Numbered",
    "batch.effective=12",
)


def test_what_a_function_splits_at_random_stays_split(tmp_path: Path, run_ranks: Any) -> None:
    alone = [samples_and_calls(argv(tmp_path, *SPLIT))]
    (tmp_path / "two").mkdir()
    together = run_ranks(2, samples_and_calls, argv(tmp_path / "two", *SPLIT))

    for of_ranks in (alone, together):
        trained = [number for each, _, _ in of_ranks for number in each]
        held = [number for _, each, _ in of_ranks for number in each]
        assert sorted(trained + held) == list(range(16))
        assert len(held) == 4
        assert {calls for _, _, calls in of_ranks} == {1}


def test_ranks_with_other_values_are_found(tmp_path: Path, run_ranks: Any) -> None:
    refused = run_ranks(2, refused_on_a_rank, tmp_path, f"data.source={HERE}.from_entropy")

    for kind, text in refused:
        assert kind == LaunchError.__name__
        assert "the ranks do not agree on data of train: 37 rows, sha256" in text
        assert "default_rng()" in text


def streamed(arguments: Sequence[str], last: int) -> list[list[float]]:
    """The first input of each sample of this rank, step by step, up to step `last`; then the run is
    saved.
    """
    stir(random.randrange(1000))
    run = build(load(arguments), "accumulate")
    seen = []
    for window in run.windows:
        seen.append(
            [x for m in window.micro_batches if m.samples for x in m.batch["inputs"][:, 0].tolist()]
        )
        run.report.progress.advance(window, None)
        random.random()
        np.random.rand()
        if window.k == last:
            break
    run.save()
    run.close("stopped", 75)
    return seen


def test_a_stream_that_draws_is_the_same_on_all_ranks_and_after_a_resume(
    tmp_path: Path, run_ranks: Any
) -> None:
    options = (f"data={{source: {HERE}.drawing_stream, shuffle_buffer: 4}}", "duration={steps: 8}")
    whole = streamed(argv(tmp_path, *options, "name=one"), 8)
    two = run_ranks(2, streamed, argv(tmp_path, *options, "name=two"), 8)
    cut = argv(tmp_path, *options, "name=cut", "checkpoint.resume=auto")
    resumed = streamed(cut, 3) + streamed(cut, 8)

    assert whole == [first + second for first, second in zip(*two, strict=True)]
    assert resumed == whole
    assert whole[0] != whole[5], "the second epoch draws other numbers"


def test_a_transform_draws_by_seed_epoch_and_sample(tmp_path: Path) -> None:
    transformed = f"data.transform={HERE}.drawing_transform"
    inside = losses(tmp_path / "inside", transformed, "data.workers=0", "duration={epochs: 2}")
    in_workers = losses(tmp_path / "workers", transformed, "data.workers=2", "duration={epochs: 2}")
    mixed = losses(tmp_path / "mixed", transformed, "data.workers=0", *MIXUP)

    assert inside == in_workers
    assert mixed == losses(tmp_path / "again", transformed, "data.workers=1", *MIXUP)
    first = load(argv(tmp_path, transformed, "seed=1"))
    second = load(argv(tmp_path, transformed, "seed=2"))
    one, two = (
        open_datasets(loaded.config, ("inputs", "labels")).train.fetch(np.arange(4))
        for loaded in (first, second)
    )
    noise = [batch["inputs"] - torch.tensor(tiny(37)["inputs"][:4]) for batch in (one, two)]
    assert not torch.equal(noise[0], noise[1]), "another seed, other augmentation"
    assert len({row[0].item() for row in noise[0]}) == 4, "each sample its own"


def test_data_errors_keep_the_generators(tmp_path: Path) -> None:
    before = Generators().states()

    with pytest.raises(DataError):
        build(load(argv(tmp_path, "data.source=no/such/file.csv")), "accumulate")
    assert Generators().states().moved_since(before) == []
