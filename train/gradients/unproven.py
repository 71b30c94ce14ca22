"""A stage of a schedule may have larger micro-batches than all before it: they are reduced late
until they have proven.

An out-of-memory in them is then one that all ranks learn of before they wait for each other
(gradients/shrink.py).
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
        largest: int | None = None  # so far

        def watched(learner: Learner, window: Window) -> Tensor:
            nonlocal largest
            micro = plan.batch.at(window.seen).micro
            if largest is not None and micro > largest:  # those of a run's first steps: Shrink
                learner.parallel.reduce_late(STEPS_TO_PROVE)
            largest = max(micro, largest or 0)
            return compute_gradient(learner, window)

        return watched

    return Part(name="unproven", gradient=around)
