"""Under a batch schedule, a stage may have larger micro-batches than all steps before it.

Their gradients are reduced after the last backward pass until the size has proven that it fits: all
ranks then learn of an out-of-memory before they wait for each other (gradients/shrink.py).
"""

from torch import Tensor

from train.batch.window import Window
from train.config import Config
from train.gradients.shrink import STEPS_TO_PROVE
from train.parts import Part
from train.plan.run_plan import RunPlan
from train.plan.smaller import can_shrink
from train.step import ComputeGradient, Learner


def part(config: Config, plan: RunPlan) -> Part:
    if not plan.batch.stages or not can_shrink(plan, config):
        return Part(name="unproven")

    def around(compute_gradient: ComputeGradient) -> ComputeGradient:
        largest: int | None = None  # micro-batch so far

        def watched(learner: Learner, window: Window) -> Tensor:
            nonlocal largest
            micro = plan.batch.at(window.seen).micro
            # A start's first steps are looked after by Shrink itself.
            if largest is not None and micro > largest:
                learner.parallel.reduce_late(STEPS_TO_PROVE)
            # The largest so far, not the last: a size that was there before has shown that it fits.
            largest = max(micro, largest or 0)
            return compute_gradient(learner, window)

        return watched

    return Part(name="unproven", gradient=around)
