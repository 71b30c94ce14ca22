"""How many graphs torch.compile has compiled: ever more of them mean compiling, not training.

torch compiles a forward again for another mode or for unexpected sizes, and gives up after eight
times (torch._dynamo.config.recompile_limit): from then on new cases run uncompiled, slower, and
only a warning mentions it.
"""

from collections.abc import Callable
from typing import Any

from train import metric_names
from train.errors import counted
from train.parts import Metrics, Part
from train.step import Learner


def part(learner: Learner) -> Part:
    """Without effect where the model is not compiled."""
    if learner.module._compiled_call_impl is None:
        return Part(name="compilations")
    compilations = Compilations()
    return Part(
        name="compilations",
        gradient=compilations.around(metric_names.TRAINING_GRAPHS),
        evaluation=compilations.around(metric_names.EVALUATION_GRAPHS),
        of_rank=compilations.metrics,
        closing_line=compilations.line,
    )


class Compilations:
    """Of this process: before the first step, in training, and in evaluations."""

    def __init__(self) -> None:
        self._before = compiled_graphs()
        self._counts = {metric_names.TRAINING_GRAPHS: 0, metric_names.EVALUATION_GRAPHS: 0}

    def around(self, name: str) -> Callable[[Any], Any]:
        """Decorates a function: graphs compiled inside it count as `name`."""

        def decorate(inner: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any) -> Any:
                before = compiled_graphs()
                try:
                    return inner(*args)
                finally:
                    self._counts[name] += compiled_graphs() - before

            return counting

        return decorate

    def metrics(self) -> Metrics:
        return {name: float(count) for name, count in self._counts.items()}

    def line(self) -> str:
        training = counted(self._counts[metric_names.TRAINING_GRAPHS], "graph")
        evaluation = self._counts[metric_names.EVALUATION_GRAPHS]
        return (
            f"compiled: {training} in training, {evaluation} in evaluations, {self._before} before"
        )


def compiled_graphs() -> int:
    """In this process. From a counter of torch's own tests: there is no public one (2.13)."""
    # Imported here: it takes a second, and a compiled model has imported it already.
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
