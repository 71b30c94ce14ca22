"""The best evaluation so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from train import metric_names
from train.errors import UserError

LESS_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "error", "mse", "mae", "rmse")
MORE_IS_BETTER = ("accuracy", "f1", "auc", "precision", "recall", "r2")


class UnknownDirection(UserError):
    """It is not known whether more or less of a metric is better."""


@dataclass
class Best:
    """Watches one metric, such as eval/accuracy."""

    metric: str
    more_is_better: bool
    value: float | None = None
    step: int = 0
    last: float | None = None

    @classmethod
    def of(cls, setting: str | None) -> "Best":
        """From evaluate.best: `eval/accuracy`, or `max eval/mine` where the name does not decide
        it. Unset: eval/loss.
        """
        direction, _, metric = (setting or metric_names.EVAL_LOSS).rpartition(" ")
        if direction not in ("", "min", "max"):
            raise UnknownDirection(
                f"evaluate.best={setting}: it starts with {direction!r}. Set: evaluate.best='max "
                f"{metric}'"
            )
        # Its own word first: the name of the user's metric may end in "loss" and mean something
        # else.
        if direction:
            return cls(metric, more_is_better=direction == "max")
        name = metric.rsplit("/", 1)[-1]
        # No guess for an unknown name: the wrong weights would be kept in best/ without a word.
        if name not in LESS_IS_BETTER + MORE_IS_BETTER:
            raise UnknownDirection(
                f"evaluate.best={setting}: is more of {name!r} better, or less? "
                f"Set: evaluate.best='max {metric}' (or 'min {metric}')"
            )
        return cls(metric, more_is_better=name in MORE_IS_BETTER)

    def see(self, row: Mapping[str, float]) -> None:
        value = row.get(self.metric)
        # NaN compares as neither better nor worse, and would stay the best for ever as the first
        # value.
        if value is None or not math.isfinite(value):
            return
        self.last = value
        if self._is_better(value):
            self.value = value
            self.step = int(row[metric_names.GLOBAL_STEP])

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return True
        return value > self.value if self.more_is_better else value < self.value

    def forget(self) -> None:
        """From now on the next evaluation is the best, whatever it gives."""
        self.value = None
        self.step = 0

    def is_new(self, step: int) -> bool:
        """Whether the evaluation of this step is the best so far."""
        return self.value is not None and self.step == step

    @property
    def short(self) -> str:
        """For the live line."""
        if self.value is None:
            return ""
        return f"{self._name} {self.last:.4f} (best {self.value:.4f})"

    def __str__(self) -> str:
        if self.value is None:
            return ""
        return f"{self._name} {self.last:.4f}, best {self.value:.4f} at step {self.step}"

    @property
    def _name(self) -> str:
        return self.metric.removeprefix(metric_names.EVAL)
