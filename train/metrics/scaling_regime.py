"""Whether the rule that scaled the optimizer's numbers holds at the noise scale that the run
measures.
"""

from collections.abc import Callable, Sequence

from train import metric_names
from train.comparison.critical_batch import error_interval
from train.config.recipe import Optimizer as OptimizerConfig
from train.optim.batch_scaling import Change
from train.optim.regimes import against_noise, measured
from train.parts import Metrics, Part


def part(
    config: OptimizerConfig, changes: Sequence[Change | None], say: Callable[[str], None]
) -> Part:
    """Takes the noise scale from the parts inside it; `changes`: to each effective batch of the
    run.
    """
    regime = Regime(config.lr_scaling, changes, say)
    return Part(name="scaling_regime", metrics=regime.see, closing_line=regime.tell)


class Regime:
    """Says it once, when both ends of the estimate agree, and again at the end."""

    def __init__(
        self, rule: str, changes: Sequence[Change | None], say: Callable[[str], None]
    ) -> None:
        self._rule = rule
        self._changes = changes
        self._say = say
        self._last: tuple[float, float] | None = None  # noise scale, its relative error
        self._said = False

    def see(self, metrics: Metrics) -> Metrics:
        if metric_names.NOISE_SCALE in metrics:
            self._last = metrics[metric_names.NOISE_SCALE], metrics[metric_names.NOISE_SCALE_ERROR]
            hint = self.tell()
            if hint and not self._said:
                self._said = True
                self._say(hint)
        return metrics

    def tell(self) -> str:
        """Empty where the rule holds, or where nobody knows."""
        if self._last is None:
            return ""
        value, error = self._last
        for change in self._changes:
            ends = [self._against(change, end) for end in error_interval(value, error)]
            hint = self._against(change, value)
            if all(ends) and hint:
                return hint
        return ""

    def _against(self, change: Change | None, noise_scale: float) -> str:
        found = against_noise(self._rule, measured(change, noise_scale), "the measured")
        return next(("hint: " + hint for hint in found), "")
