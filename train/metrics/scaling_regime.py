"""Whether the rule that scaled the learning rate holds at the noise scale that the run measures."""

from collections.abc import Callable, Sequence

from train import metric_names
from train.comparison.critical_batch import error_interval
from train.config.recipe import Optimizer as OptimizerConfig
from train.optim.batch_scaling import Change
from train.optim.regimes import against_noise, with_noise_scale
from train.parts import Metrics, Part


def part(
    config: OptimizerConfig, changes: Sequence[Change | None], show: Callable[[str], None]
) -> Part:
    """Takes the noise scale from the parts inside it.

    `changes`: what the rule did for each effective batch of the run.
    """
    regime = Regime(config.lr_scaling, changes, show)
    return Part(name="scaling_regime", metrics=regime.watch, closing_line=regime.hint)


class Regime:
    """Shows a hint once, when both ends of the estimate agree, and again at the end of the run."""

    def __init__(
        self, rule: str, changes: Sequence[Change | None], show: Callable[[str], None]
    ) -> None:
        self._rule = rule
        self._changes = changes
        self._show = show
        self._noise_scale: float | None = None  # the last one
        self._error = 0.0  # of it, relative
        self._is_shown = False

    def watch(self, metrics: Metrics) -> Metrics:
        if metric_names.NOISE_SCALE in metrics:
            self._noise_scale = metrics[metric_names.NOISE_SCALE]
            self._error = metrics[metric_names.NOISE_SCALE_ERROR]
            hint = self.hint()
            if hint and not self._is_shown:
                self._is_shown = True
                self._show(hint)
        return metrics

    def hint(self) -> str:
        """Empty where the rule holds, or where that is unknown."""
        if self._noise_scale is None:
            return ""
        for change in self._changes:
            hint = self._against(change, self._noise_scale)
            interval = error_interval(self._noise_scale, self._error)
            ends = [self._against(change, end) for end in interval]
            if all(ends) and hint:
                return hint
        return ""

    def _against(self, change: Change | None, noise_scale: float) -> str:
        for hint in against_noise(
            self._rule, with_noise_scale(change, noise_scale), "the measured"
        ):
            return f"hint: {hint}"
        return ""
