"""Out of memory while a gradient is computed: the same step again, in smaller micro-batches, on all ranks.

Same effective batch, same samples, same draws: to the bit what a run with the smaller size computes. The size stays for
the rest of the run, and for a start after it (plan/smaller.py).
"""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from train.batch.window import Window
from train.config import Config
from train.distributed.ranks import Ranks
from train.errors import ShortOfMemory, is_out_of_memory
from train.gradients.whole import Whole
from train.plan.run_plan import RunPlan
from train.plan.smaller import Smaller, remember
from train.step import Learner

STEPS_TO_PROVE = 2
"""After so many steps a size has shown that it fits: the first update makes the optimizer's state, and the second
gradient is computed beside it."""

Tell = Callable[[str, str], None]
"""Takes a title and a text."""


class Shrink:
    """What is done where memory runs out in a step, under batch.on_oom=shrink."""

    def __init__(
        self, plan: RunPlan, config: Config, whole: Whole, learner: Learner, ranks: Ranks, folder: Path, tell: Tell
    ) -> None:
        self._plan = plan
        self._config = config
        self._whole = whole
        self._learner = learner
        self._ranks = ranks
        self._folder = folder
        self._tell = tell
        self.remembered: int | None = None  # what a start after this one takes, where this one ends
        whole.again = self.after
        # More than one sample at once: else nothing can be tried that is smaller.
        if self._can_shrink and plan.batch.micro > 1:
            learner.parallel.reduce_late(STEPS_TO_PROVE)

    @property
    def _can_shrink(self) -> bool:
        # The standard loop has one micro-batch; with micro_tokens, a limit on tokens says how many samples one has.
        return self._config.batch.on_oom == "shrink" and self._plan.loop == "accumulate" and not self._plan.micro_steps

    def after(self, error: Exception, window: Window) -> Window | None:
        """The window in smaller micro-batches; None where the run has to end.

        All ranks come here by the same error, or none of them can go on: then the size is kept for the next start.
        """
        is_common = isinstance(error, ShortOfMemory) or self._ranks.world_size == 1
        if not (isinstance(error, ShortOfMemory) or is_out_of_memory(error)) or not self._can_shrink:
            return None
        batch = self._plan.batch
        present = min(self._whole.most or batch.micro, window.samples)
        if present == 1:
            return None
        most = batch.recut((present + 1) // 2).micro
        if not is_common or self._learner.parallel.is_sharded:
            self.remembered = most
            remember(self._folder, Smaller(batch.micro, batch.world_size, most, window.k))
            return None
        if self._whole.put_back() is None:
            return None
        self._begin_again(most, window.k, error)
        return window.recut(most)

    def _begin_again(self, most: int, step: int, error: Exception) -> None:
        learner, batch = self._learner, self._plan.batch
        learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)
        self._whole.most = most
        learner.feed.shrink(most)
        learner.parallel.reduce_late(STEPS_TO_PROVE)
        if self._ranks.is_main:
            remember(self._folder, Smaller(batch.micro, batch.world_size, most, step))
        said = str(error).strip().partition("\n")[0]
        self._tell(
            "a step ran out of memory",
            f"step {step:,} ran out of memory ({said}): it is done again, and all that follow, in micro-batches of at "
            f"most {most:,}; the batch of {batch.effective:,} and the curve stay. Next time: batch.micro={most}",
        )
        free_memory(learner.device)


def free_memory(device: torch.device) -> None:
    """Give back what was kept: the frames of an error hold what did not fit, and pieces of the old sizes may be of no
    use to smaller ones."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
