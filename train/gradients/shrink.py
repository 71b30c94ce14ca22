"""Out of memory while a gradient is computed: the same step again, in smaller micro-batches, on all
ranks.

Same effective batch, same samples, same draws: to the bit what a run with the smaller size
computes. The size stays for the rest of the run, and for a start after it (plan/smaller.py).
"""

from collections.abc import Callable
from pathlib import Path

from train.batch import BatchPlan
from train.batch.window import Window
from train.config import Config
from train.distributed.ranks import Ranks
from train.errors import ShortOfMemory, is_out_of_memory
from train.gradients.whole import Whole
from train.plan.run_plan import RunPlan, Shrunk
from train.plan.smaller import can_shrink, remember
from train.step import Learner

STEPS_TO_PROVE = 2
"""After so many steps a size has shown that it fits: the first update makes the optimizer's state,
and the second gradient is computed beside it.
"""

Tell = Callable[[str, str], None]
"""Takes a title and a text."""


class Shrink:
    """What is done where memory runs out in a step, under batch.on_oom=shrink."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        config: Config,
        whole: Whole,
        learner: Learner,
        ranks: Ranks,
        folder: Path,
        tell: Tell,
        refuses: Callable[[BatchPlan], bool],
    ) -> None:
        """`refuses`: whether the model cannot take a micro-batch of such a plan, such as one sample
        in BatchNorm.
        """
        self._plan = plan
        self._can_shrink = can_shrink(plan, config)
        self._refuses = refuses
        self._whole = whole
        self._learner = learner
        self._ranks = ranks
        self._folder = folder
        self._tell = tell
        whole.again = self.after
        if plan.shrunk is not None and ranks.is_main:
            remember(folder, plan.shrunk)  # also where the folder is a new one
        # More than one sample at once: else nothing can be tried that is smaller.
        if self._can_shrink and plan.batch.micro > 1:
            learner.parallel.reduce_late(STEPS_TO_PROVE)

    def after(self, error: Exception, window: Window) -> Window | None:
        """The window in smaller micro-batches; None where the run has to end.

        All ranks come here by the same error, or none of them can go on: then the size is kept for
        the next start.
        """
        is_common = isinstance(error, ShortOfMemory) or self._ranks.world_size == 1
        if (
            not (isinstance(error, ShortOfMemory) or is_out_of_memory(error))
            or not self._can_shrink
        ):
            return None
        most = self._smaller(window)
        if most is None:
            return None
        if not is_common or self._learner.parallel.is_sharded or self._whole.put_back() is None:
            self._whole.remembered = most
            self._remember(most, window.k)
            return None
        self._begin_again(most, window.k, error)
        return window.recut(most)

    def _smaller(self, window: Window) -> int | None:
        """Half the present size, or else the next smaller or larger one that the model takes."""
        batch = self._plan.batch
        largest_share = max(batch.at(window.seen).shares(window.samples))
        present = min(self._whole.most or batch.micro, largest_share)
        half = (present + 1) // 2
        for size in (*range(half, 0, -1), *range(half + 1, present)):
            cut = batch.recut(size)
            if cut.micro < present and not self._refuses(cut):
                return cut.micro
        return None

    def _remember(self, most: int, step: int) -> None:
        batch, before = self._plan.batch, self._plan.shrunk
        planned = batch.micro if before is None else before.planned
        remember(self._folder, Shrunk(planned, batch.world_size, most, step))

    def _begin_again(self, most: int, step: int, error: Exception) -> None:
        learner = self._learner
        learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)
        self._whole.most = most
        learner.feed.shrink(most)
        learner.parallel.reduce_late(STEPS_TO_PROVE)
        if self._ranks.is_main:
            self._remember(most, step)
        said = str(error).strip().partition("\n")[0]
        self._tell(
            "a step ran out of memory",
            f"step {step:,} ran out of memory ({said}): it is done again, and all that follow, in "
            f"micro-batches of at most {most:,}; the batch and the curve stay",
        )
