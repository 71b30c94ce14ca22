"""The batch contract: what an optimizer step consists of, and which rank does what. No torch."""

from train.batch.assign import Assignment, assign, divide
from train.batch.order import sample_ids
from train.batch.plan import BatchPlan, PlanError, first_of, make_plan, ranks, share
from train.permutation import key_of

__all__ = ["Assignment", "BatchPlan", "PlanError", "assign", "divide", "first_of"]
__all__ += ["key_of", "make_plan", "ranks", "sample_ids", "share"]
