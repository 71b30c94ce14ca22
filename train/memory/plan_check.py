"""A prediction checks itself: by how much did it miss the first step that was measured?"""

from train import metric_names
from train.batch.window import Window
from train.memory.cpu_allocator import AllocatedPeak


class PlanCheck:
    """Of the peak of a step, on this rank."""

    def __init__(self, prediction: tuple[int, int, int]) -> None:
        """Bytes of a full step, its samples over all ranks, and a rank's micro-batches."""
        self._predicted, self._samples, self._micro_steps = prediction
        self._is_full = False
        self._error: float | None = None
        self._was_given = False
        self._on_cpu: tuple[AllocatedPeak, int] | None = None

    def sees(self, window: Window) -> None:
        """The step that comes; the last one of an epoch may be smaller, one that ran out of memory
        is cut otherwise: they are left out.
        """
        self._is_full = (window.samples, len(window.micro_batches)) == (
            self._samples,
            self._micro_steps,
        )

    def begin(self, held: int) -> None:
        """A step on a CPU, before which `held` bytes are in use; the first one alone is
        looked at.
        """
        if self._on_cpu is None and self._is_full:
            self._on_cpu = (AllocatedPeak(), held)
            self._on_cpu[0].start()

    def give_up(self) -> None:
        """Something else is computed in the midst of the step that was begun: another one is looked
        at.
        """
        if self._on_cpu is not None and self._error is None:
            self._on_cpu[0].stop()
            self._on_cpu = None

    def end(self) -> None:
        """Of the step that was begun, if one was."""
        if self._on_cpu is not None and self._error is None:
            allocated, held = self._on_cpu
            self.measured(held + allocated.stop())

    def measured(self, peak: float) -> None:
        if self._error is None and self._is_full:
            self._error = self._predicted / peak - 1

    def error(self) -> dict[str, float]:
        """For one row."""
        if self._error is None or self._was_given:
            return {}
        self._was_given = True
        return {metric_names.PLAN_ERROR: self._error}

    def summary(self) -> str:
        return (
            ""
            if self._error is None
            else f"; the peak of a step was predicted to {self._error:+.2%}"
        )
