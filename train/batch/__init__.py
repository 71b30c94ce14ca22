"""The batch contract: what one optimizer step consists of, and who does which part of it. Pure: no
torch.
"""

from train.batch.assign import Assignment, assign, divide
from train.batch.order import sample_ids
from train.batch.plan import BatchPlan, PlanError, first_of, make_plan, ranks, share
from train.permutation import key_of

__all__ = ["Assignment", "BatchPlan", "PlanError", "assign", "divide", "first_of"]
__all__ += ["key_of", "make_plan", "ranks", "sample_ids", "share"]
