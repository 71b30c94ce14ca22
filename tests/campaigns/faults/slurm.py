"""The row about a job of two nodes that SLURM interrupts and starts again (its stand-in:
tests/slurm).
"""

import time
from pathlib import Path

from tests.campaigns.faults.row import Row, folder
from tests.conftest import run_ranks
from tests.slurm import Slurm
from tests.slurm.runs import losses, requeued, weights
from train.accumulate import compute_gradient
from train.main import main

WORDS = ("duration.steps=300", "log.every_steps=1", "wandb.mode=disabled")
INTERRUPTIONS = {
    "SIGUSR1 before the time limit": Slurm.near_time_limit,
    "preemption": Slurm.preempt,
}


def _train(output_dir: Path) -> int:
    words = ["configs/digits.yaml", "name=run", f"output_dir={output_dir}", *WORDS]
    return main(words, "accumulate", compute_gradient)


def interrupted(here: Path, full: bool) -> str:
    assert run_ranks(2, _train, here / "whole") == [0, 0]
    whole = here / "whole" / "run"
    told = []
    for name, interrupt in list(INTERRUPTIONS.items())[: 2 if full else 1]:
        trials = 5 if full else 1
        begun = time.monotonic()
        for number in range(trials):
            run = requeued(folder(here, f"{name.split()[0]}-{number}"), 2, WORDS, interrupt)
            assert losses(run) == losses(whole)
            assert weights(run) == weights(whole)
        told.append(f"{name} {trials} times, {(time.monotonic() - begun) / trials:.0f} s each")
    return (
        f"{'; '.join(told)}: one folder, losses and weights bit-identical to a run that nobody "
        "disturbed"
    )


ROWS = (
    Row(
        "62",
        "SLURM interrupts a job of two nodes and starts it again",
        "scripts/slurm.sbatch under stand-ins for sbatch, srun and scontrol; nodes are network "
        "namespaces",
        "saved, requeued once, finished; bit-identical",
        interrupted,
        slow=True,
    ),
)
