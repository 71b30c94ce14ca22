"""Memory runs out at random places of a step: is it done again to the bit, and does no rank wait
for ever?

OMP_NUM_THREADS=1 python -m tests.campaigns.out_of_memory [--trials 100]

Each trial is compared with a run that is begun again, at that step, with the smaller micro-batches.
A hang would end the session by the time limit of run_ranks, and the campaign by its error.
"""

import argparse
import contextlib
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tests.campaigns.faults.table import commit
from tests.conftest import run_ranks
from tests.gradients.test_shrink import failing, given, train_to_the_end
from train import load
from train.accumulate import compute_gradient
from train.plan.smaller import remembered

PER_SESSION = 4


@dataclass(frozen=True)
class Trial:
    name: str
    ranks: int
    reduction: str
    micro: int
    step: int
    where: str
    micro_step: int  # from 1; -1: the last
    rank: int | None  # that runs out of memory; None: all

    def words(self, name: str) -> list[str]:
        return [f"name={name}", f"batch.micro={self.micro}", f"runtime.reduction={self.reduction}"]


def draw(number: int, random_: random.Random) -> Trial:
    ranks = random_.choice((1, 2))
    micro = random_.choice((4, 6, 8))
    return Trial(
        name=f"trial{number}",
        ranks=ranks,
        reduction=random_.choice(("auto", "explicit")),
        micro=micro,
        # Under DDP: while a size is unproven. Explicit: at any time.
        step=random_.choice((1, 2)),
        where=random_.choice(("forward", "backward")),
        micro_step=random_.choice((1, -1)),
        rank=random_.choice((None, *range(ranks))),
    )


def on_rank(folder: Path, command: list[str], trials: Sequence[Trial]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        for trial in trials:
            fault = failing(trial.step, trial.where, trial.micro_step, trial.rank)
            train_to_the_end([*command, *trial.words(trial.name)], fault)
            parts = [*command, *trial.words(f"{trial.name}-parts")]
            if trial.step > 1:
                train_to_the_end([*parts, f"duration.steps={trial.step - 1}"], compute_gradient)
            smaller = remembered(folder / trial.name)
            assert smaller is not None, "nothing ran out of memory"
            train_to_the_end([*parts, f"batch.micro={smaller.micro}"], compute_gradient)


def is_same(folder: Path, trial: Trial) -> bool:
    ours, expected = (
        load(folder / name, trust=True).state_dict() for name in (trial.name, f"{trial.name}-parts")
    )
    return all(torch.equal(ours[name], value) for name, value in expected.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    random_ = random.Random(0)
    trials = [draw(number, random_) for number in range(asked.trials)]
    found: Counter[str] = Counter()
    start = time.monotonic()
    for ranks in (1, 2):
        own = [trial for trial in trials if trial.ranks == ranks]
        for first in range(0, len(own), PER_SESSION):
            session = own[first : first + PER_SESSION]
            with tempfile.TemporaryDirectory() as name:
                run_ranks(ranks, on_rank, Path(name), given(Path(name)), session)
                for trial in session:
                    same = is_same(Path(name), trial)
                    found["same to the bit" if same else "other"] += 1
                    kind = replace(trial, name="", micro=0, step=0)
                    print(trial if not same else kind, "same" if same else "OTHER", flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{commit()}: {asked.trials} trials, {dict(found)}, no hang, {minutes:.1f} min")
    assert found == {"same to the bit": asked.trials}


if __name__ == "__main__":
    main()
