"""Out of memory in a gradient: the same step again, in smaller micro-batches, on all ranks.

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
from train.gradients.complete_step import CompleteStep
from train.plan.run_plan import RunPlan, Shrunk
from train.plan.smaller import can_shrink, remember
from train.step import Learner

STEPS_TO_PROVE = 2
"""After so many steps a size has shown that it fits.

The first update makes the optimizer's state, and the second gradient is computed beside it.
"""

Warn = Callable[[str, str], None]
"""Takes a title and a text."""


class Shrink:
    """What is done where memory runs out in a step, under batch.on_oom=shrink."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        config: Config,
        complete_step: CompleteStep,
        learner: Learner,
        ranks: Ranks,
        folder: Path,
        warn: Warn,
        refuses: Callable[[BatchPlan], bool],
    ) -> None:
        """`refuses`: whether the model cannot take the micro-batches of a plan.

        Such as one sample alone in BatchNorm.
        """
        self._plan = plan
        self._can_shrink = can_shrink(plan, config)
        self._refuses = refuses
        self._complete_step = complete_step
        self._learner = learner
        self._ranks = ranks
        self._folder = folder
        self._warn = warn
        complete_step.retry = self.after
        if plan.shrunk is not None and ranks.is_main:
            remember(folder, plan.shrunk)  # also where the folder is a new one
        # A micro-batch of one sample cannot be cut smaller: nothing to prove.
        if self._can_shrink and plan.batch.micro > 1:
            # While a size is unproven the ranks first agree that none ran out of memory, and then
            # reduce: a rank that fails in DDP's own reduction would leave the others waiting.
            learner.parallel.reduce_late(STEPS_TO_PROVE)

    def after(self, error: Exception, window: Window) -> Window | None:
        """The window in smaller micro-batches; None where the run has to end.

        All ranks come here by the same error, or none of them can retry: then the size is kept for
        the next start.
        """
        if not self._can_shrink:
            return None
        if not isinstance(error, ShortOfMemory) and not is_out_of_memory(error):
            return None
        micro = self._smaller(window)
        if micro is None:
            return None
        # ShortOfMemory is raised where all ranks have agreed on it.
        is_common = isinstance(error, ShortOfMemory) or self._ranks.world_size == 1
        can_retry = is_common and not self._learner.parallel.is_sharded
        if not can_retry or self._complete_step.put_back() is None:
            self._complete_step.max_micro_of_next_start = micro
            # On this rank, whichever it is: the others may have fitted, and know nothing of it.
            self._remember(micro, window.k)
            return None
        self._begin_again(micro, window.k, error)
        return window.recut(micro)

    def _smaller(self, window: Window) -> int | None:
        """Half the present size, or else the next smaller or larger one that the model takes."""
        batch = self._plan.batch
        largest_share = max(batch.at(window.seen).shares(window.samples))
        # Where a rank has fewer samples in a step than fit in a micro-batch, half of the
        # micro-batch might be the same size again.
        present = min(self._complete_step.max_micro or batch.micro, largest_share)
        half = (present + 1) // 2
        for micro in (*range(half, 0, -1), *range(half + 1, present)):
            cut = batch.recut(micro)
            # recut spreads the samples evenly, so its micro-batches may be smaller than what was
            # asked for.
            if cut.micro < present and not self._refuses(cut):
                return cut.micro
        return None

    def _remember(self, micro: int, step: int) -> None:
        batch = self._plan.batch
        before = self._plan.shrunk
        planned = batch.micro if before is None else before.planned
        shrunk = Shrunk(planned=planned, world_size=batch.world_size, micro=micro, step=step)
        remember(self._folder, shrunk)

    def _begin_again(self, micro: int, step: int, error: Exception) -> None:
        learner = self._learner
        # What the failed try has added up: left there, it would count twice.
        learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)
        self._complete_step.max_micro = micro
        # The feed has announced the step in its old size, and may have begun to copy the next
        # micro-batch.
        learner.feed.shrink(micro)
        learner.parallel.reduce_late(STEPS_TO_PROVE)
        if self._ranks.is_main:
            self._remember(micro, step)
        first_line = str(error).strip().partition("\n")[0]
        self._warn(
            "a step ran out of memory",
            f"step {step:,} ran out of memory ({first_line}): it is done again, and all that "
            f"follow, in micro-batches of at most {micro:,}; the batch and the curve stay",
        )
