"""By how much a predicted peak missed the first step that was measured."""

from train import metric_names
from train.batch.window import Window
from train.memory.cpu_allocator import AllocatedPeak


class PlanCheck:
    """Compares the predicted peak of a step with a measured one, on this rank, once.

    On a GPU the allocator's counters give the measured peak (`measured`); on a CPU the profiler
    watches one step (`begin`, `end`).
    """

    def __init__(self, prediction: tuple[int, int, int]) -> None:
        """`prediction`: (bytes, samples over all ranks, micro-batches of this rank) of a step."""
        self._predicted, self._samples, self._micro_batches = prediction
        self._is_full_step = False
        self._error: float | None = None  # relative
        self._is_logged = False
        self._profiled: AllocatedPeak | None = None
        self._held_before = 0  # bytes in use when the profiled step began

    def expect(self, window: Window) -> None:
        """The step to come.

        The last step of an epoch may be smaller, and one that ran out of memory is cut otherwise:
        neither is compared.
        """
        self._is_full_step = (
            window.samples == self._samples and len(window.micro_batches) == self._micro_batches
        )

    def begin(self, held: int) -> None:
        """Profile this step on a CPU, the first full one; `held`: bytes in use before it."""
        if self._profiled is None and self._is_full_step:
            self._profiled = AllocatedPeak()
            self._held_before = held
            self._profiled.start()

    def abandon(self) -> None:
        """Something else is computed in the middle of the profiled step: take a later step."""
        if self._profiled is not None and self._error is None:
            self._profiled.stop()
            self._profiled = None

    def end(self) -> None:
        """End of the profiled step, if there is one."""
        if self._profiled is not None and self._error is None:
            self.measured(self._held_before + self._profiled.stop())

    def measured(self, peak: float) -> None:
        if self._error is None and self._is_full_step:
            # Positive where too much was predicted.
            self._error = self._predicted / peak - 1

    def error(self) -> dict[str, float]:
        """{metric: relative error} for one row; empty in all others."""
        if self._error is None or self._is_logged:
            return {}
        self._is_logged = True
        return {metric_names.PLAN_ERROR: self._error}

    def summary(self) -> str:
        if self._error is None:
            return ""
        return f"; the peak of a step was predicted to {self._error:+.2%}"
