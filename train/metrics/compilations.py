"""How many graphs torch.compile has made: a run that makes more and more of them compiles in place
of training.

torch compiles a forward anew for another mode or for sizes that it did not expect, and gives up
after eight times (torch._dynamo.config.recompile_limit): from then on what is new runs as it was
written, slower, and only a warning says so.
"""

from collections.abc import Callable
from typing import Any

from train import metric_names
from train.errors import counted
from train.parts import Metrics, Part
from train.step import Learner


def part(learner: Learner) -> Part:
    """Nothing where the model is not compiled."""
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
    """Of this process: before the first step, in training and in evaluations."""

    def __init__(self) -> None:
        self._before = graphs()
        self._found = {metric_names.TRAINING_GRAPHS: 0, metric_names.EVALUATION_GRAPHS: 0}

    def around(self, name: str) -> Callable[[Any], Any]:
        def put_around(inner: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*args: Any) -> Any:
                before = graphs()
                try:
                    return inner(*args)
                finally:
                    self._found[name] += graphs() - before

            return watched

        return put_around

    def metrics(self) -> Metrics:
        return {name: float(found) for name, found in self._found.items()}

    def line(self) -> str:
        training, evaluation = self._found.values()
        return (
            f"compiled: {counted(training, 'graph')} in training, {evaluation} in evaluations, "
            f"{self._before} before"
        )


def graphs() -> int:
    """That were compiled in this process. What torch's own tests read; there is no public counter
    (2.13).
    """
    # here: it takes a second, and is there where something was compiled
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
