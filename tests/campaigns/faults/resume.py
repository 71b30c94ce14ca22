"""The resume grid: wherever a run is interrupted, its end is the same to the last bit."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.campaigns.faults import compare, ranks
from tests.campaigns.faults.row import Row, check_same, command, folder, reference, train

DATA = {
    "map": (),
    "workers": ("data.transform=tests.campaigns.faults.data.noisy", "data.workers=2"),
    "stream": ("data.source=tests.helpers.stream", "data.shuffle_buffer=7"),
}


@dataclass(frozen=True)
class Cell:
    loop: str
    ranks: int
    micro: str  # all, or one that gives 4 micro-batches
    dropout: bool
    data: str

    @property
    def words(self) -> tuple[str, ...]:
        model = "{target: tests.campaigns.faults.ranks.Dropped}"
        return (
            "duration.steps=14",
            f"batch.micro={self.micro}",
            *([f"model={model}"] if self.dropout else []),
            *DATA[self.data],
        )

    def __str__(self) -> str:
        return f"{self.loop}-{self.ranks}-{self.micro}-{'dropout' if self.dropout else 'plain'}-{self.data}"


def cells(full: bool) -> Iterator[Cell]:
    if not full:
        yield Cell("accumulate", 2, "1", True, "workers")
        yield Cell("standard", 1, "all", True, "stream")
        return
    for loop in ("standard", "accumulate"):
        for world_size in (1, 2):
            for micro in ("all",) if loop == "standard" else ("all", str(2 // world_size)):
                for dropout in (False, True):
                    for data in DATA:
                        yield Cell(loop, world_size, micro, dropout, data)


PLACES = {"middle": 7, "end of an epoch": 10}  # 37 samples, 8 per step: 5 steps per epoch


def grid(here: Path, full: bool) -> str:
    passed = 0
    for cell in cells(full):
        own = folder(here, str(cell))
        preserve_state = reference(
            own, cell.ranks, *cell.words, "checkpoint.every_steps=100", loop=cell.loop
        )
        for place, step in PLACES.items() if full or cell.ranks == 1 else list(PLACES.items())[:1]:
            stopped = folder(own, place.replace(" ", "-"))
            words = command(stopped, *cell.words, f"checkpoint.every_steps={step}")
            kill = partial(ranks.at_step, step + 1, ranks.kill)
            codes, job = train(stopped, cell.ranks, words, kill, loop=cell.loop)
            assert codes == [-signal.SIGKILL] * cell.ranks, job.told()
            codes, job = train(stopped, cell.ranks, words, loop=cell.loop)
            assert codes == [0] * cell.ranks, job.told()
            assert f"step-{step:08}: step {step} of 14" in job.told(0), job.told(0)
            check_same(stopped, preserve_state, cell.ranks)
            passed += 1
    return f"{passed} of {passed} cells bit-identical; {other_ranks(folder(here, 'others'), full)}"


def other_ranks(here: Path, full: bool) -> str:
    words = ("precision=fp64", "duration.steps=14")
    preserve_state = reference(here, 1, *words)
    expected = load_file(str(preserve_state / "run" / "final" / "model.safetensors"))
    samples, worst = compare.samples(preserve_state, 1), 0.0
    changes = ((1, 2), (2, 1), (2, 3)) if full else ((2, 1),)
    for before, after in changes:
        own = folder(here, f"{before}-{after}")
        first = folder(own, "first")
        started = command(own, *words, "checkpoint.every_steps=7")
        codes, job = train(
            own, before, started, partial(ranks.at_step, 8, ranks.kill), FAULTS_RECORD=str(first)
        )
        assert codes == [-signal.SIGKILL] * before, job.told()
        codes, job = train(own, after, started)
        assert codes == [0] * after, job.told()
        assert dict(compare.samples(own, after).items()) == {k: samples[k] for k in range(8, 15)}
        found = load_file(str(own / "run" / "final" / "model.safetensors"))
        for name, tensor in expected.items():
            worst = max(
                worst, float((found[name] - tensor).norm() / torch.clamp(tensor.norm(), min=1e-300))
            )
        assert worst <= 1e-10, f"{before} -> {after} ranks: {worst}"
        assert compare.train_steps(own / "run") == list(range(1, 15))
    told = ", ".join(f"{before}->{after}" for before, after in changes)
    return f"on other ranks ({told}, float64): the same samples, weights within {worst:.1e}"


ROWS = (
    Row(
        "22",
        "resume grid",
        "ranks 1, 2 x accumulation 1, 4 x middle, end of epoch x dropout x map, 2 workers, stream; "
        "both loops; SIGKILL",
        "bit-identical weights, optimizer, rows; other ranks: 1e-10",
        grid,
    ),
)
