"""How far a run is and what it has cost so far: what the rows after a resume depend on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from train.config import Config
from train.distributed.ranks import launched_rank
from train.report.best import Best
from train.report.login import check_login
from train.report.progress import Clock, Progress
from train.report.run_figures import RunFigures
from train.report.wandb_settings import check_settings


@dataclass
class RunState:
    """Counted on every rank alike; a checkpoint holds rank 0's."""

    best: Best
    # data.block_size, as the config has it now; 0: samples are no blocks
    tokens_per_sample: int = 0
    progress: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)
    run_id: str | None = None  # in W&B; known on rank 0
    last_save_seconds: float | None = None
    figures: RunFigures = field(default_factory=RunFigures)  # known on rank 0

    def __post_init__(self) -> None:
        self.progress.tokens_per_sample = self.tokens_per_sample

    def begin(self) -> None:
        """Training begins now: what came before is not its time."""
        # Another Clock: the old one has counted since it was made, which includes the start-up.
        self.clock = Clock(self.clock.seconds)

    def begin_from_another(self) -> None:
        """It was read from another run's checkpoint: an evaluation is owed by that run, and the
        rows are of that run too.
        """
        self.progress.evaluation_owed = False
        # W&B's id, too: with it the other run's curves would be continued, and its row in the table
        # be lost.
        self.run_id = None
        self.figures = RunFigures()

    def state_dict(self) -> dict[str, Any]:
        # Under the metric's name: with another evaluate.best the values would mean nothing.
        best = {"value": self.best.value, "step": self.best.step, "last": self.best.last}
        return {
            "progress": asdict(self.progress),
            "seconds": self.clock.seconds_so_far,
            "best": {self.best.metric: best},
            "run_id": self.run_id,
            "last_save_seconds": self.last_save_seconds,
            "whole_run": asdict(self.figures),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        # An earlier version counted no tokens: it took all blocks for full ones.
        if "tokens_seen" not in state["progress"]:
            self.progress.tokens_seen = self.progress.samples_seen * self.tokens_per_sample
        self.progress.tokens_per_sample = self.tokens_per_sample
        self.clock = Clock(state["seconds"])
        # The attributes of the Best that exists: the reporter and best_weights hold on to this
        # object.
        # Nothing is known yet of another metric than the one that was watched then.
        for name, value in state["best"].get(self.best.metric, {}).items():
            setattr(self.best, name, value)
        self.run_id = state["run_id"]
        self.last_save_seconds = state["last_save_seconds"]
        # A checkpoint of an earlier version has none: they begin here.
        self.figures = RunFigures(**state.get("whole_run", {}))


def checked_best(config: Config) -> Best:
    """The metric that evaluate.best watches.

    Raises UnknownDirection and TrackerError: what the user can fix of a report, before any data is
    read.
    """
    # Rank 0 alone tracks the run, and importing wandb takes a second or two.
    if launched_rank() == 0:
        check_login(config.wandb)
        check_settings(config.wandb)
    return Best.of(config.evaluate.best)
