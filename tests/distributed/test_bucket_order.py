"""DDP reduces in one order, from the first step on and after each resume; its gradients lie in
memory once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.helpers import argv, rank_group
from tests.test_resume import Segment, segment
from train.accumulate import compute_gradient
from train.config import load
from train.distributed.bucket_order import BucketOrder, fix_buckets
from train.memory.peaks import stored_bytes
from train.run import build
from train.step import update

HERE = "tests.distributed.test_bucket_order"


class Flipping(nn.Module):
    """Which of two branches comes first, and so which gradients arrive first, depends on weights
    and data.
    """

    is_turned = False

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Sequential(nn.Linear(6, 90), nn.Tanh(), nn.Linear(90, 3)) for _ in range(2)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.left[0].weight
        branches = [self.left, self.right]
        gate = (inputs.sum() + 1000 * weight.detach().sum()).frac().abs() > 0.5
        if bool(gate) is not self.is_turned:
            branches.reverse()
        first, second = (branch(inputs) for branch in branches)
        outputs: Tensor = first + second
        return outputs


def whole_and_killed(several: list[tuple[list[str], list[str]]]) -> list[Segment]:
    """Of each (arguments of a whole run, of one that is killed before step 5): the whole one."""
    found = []
    for whole, parts in several:
        found.append(segment(whole, "accumulate"))
        segment(parts, "accumulate", 5)
    return found


def resumed(several: list[tuple[list[str], list[str]]]) -> list[Segment]:
    return [segment(parts, "accumulate") for _, parts in several]


def orders(several: list[list[str]]) -> list[list[str]]:
    """In which each of the runs would reduce, on a machine where the other branch is looked at
    first.
    """
    Flipping.is_turned = True
    found = []
    for arguments in several:
        run = build(load(arguments), "accumulate")
        run.close("looked at", 0)
        assert isinstance(run.learner.parallel.state, BucketOrder)
        found.append(run.learner.parallel.state.names)
    return found


def test_a_resumed_run_is_bit_identical_on_three_ranks_and_more(
    run_ranks: Any, tmp_path: Path
) -> None:
    given = (
        f"model={{target: {HERE}.Flipping}}",
        *(
            "data.args.size=72",
            "batch.effective=24",
            "duration={steps: 6}",
            "checkpoint.every_steps=3",
        ),
        *("precision=fp32", "checkpoint.resume=auto", "optimizer={target: adamw, lr: 0.01}"),
    )
    for world_size, micro_steps in ((3, (1, 3)), (4, (3,))):
        several = []
        for k in micro_steps:
            names = [f"name={world_size}-{k}-{kind}" for kind in ("whole", "parts")]
            several.append(
                [argv(tmp_path, *given, f"batch.accumulation_steps={k}", name) for name in names]
            )

        uninterrupted = run_ranks(world_size, whole_and_killed, several)
        after = run_ranks(world_size, resumed, several)

        for of_rank, expected in zip(after, uninterrupted, strict=True):
            for found, whole in zip(of_rank, expected, strict=True):
                assert (min(found.ids), max(found.ids)) == (4, 6)
                assert np.array_equal(found.weights, whole.weights)
                assert np.array_equal(found.moments, whole.moments)


def test_a_checkpoint_brings_its_order_to_other_ranks(run_ranks: Any, tmp_path: Path) -> None:
    given = (
        f"model={{target: {HERE}.Flipping}}",
        "checkpoint.resume=auto",
        "optimizer.target=adamw",
    )
    long, longer, other = (
        argv(tmp_path, *given, f"name={name}", f"duration={{steps: {steps}}}")
        for name, steps in (("a", 2), ("a", 4), ("b", 2))
    )
    run_ranks(3, segment, long, "accumulate")

    of_checkpoint, of_trial = run_ranks(2, orders, [longer, other])[0]

    assert (of_checkpoint[0][:4], of_trial[0][:4]) == ("left", "righ")
    assert set(of_checkpoint) == set(of_trial)


def buckets_of(order: list[str]) -> tuple[list[list[str]], list[bool]]:
    """(parameters of each bucket that DDP sends in the last pass, whether each gradient is a view
    of zeros).
    """
    rank_group()
    module = nn.ModuleDict({name: nn.Linear(400, 400) for name in "abcd"})
    module["c"].bias = nn.Parameter(torch.full([400], torch.nan, dtype=torch.complex64))
    parameters = dict(module.named_parameters())
    names = {p: name for name, p in parameters.items()}
    model = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    sent: list[list[str]] = []

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append([names[p] for p in bucket.parameters()])
        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, hook)
    seen: list[Tensor] = []
    hooked = module["a"].weight
    hooked.register_hook(seen.append)
    fix_buckets(model, [parameters[name] for name in order])
    assert model.module is module
    assert not seen, "a hook of the user's saw a gradient that is of no sample"
    hooked.sum().backward()
    assert seen, "the hook is back"
    hooked.grad.zero_()
    return sent, [bool((p.grad == 0).all()) and p.grad._is_view() for p in parameters.values()]


def test_the_buckets_have_the_order_that_is_asked_for(run_ranks: Any) -> None:
    """Frozen by nothing else: neither by the order in which a model names its parameters, nor by
    their values.
    """
    order = ["b.weight", "d.bias", "a.weight", "a.bias", "c.weight", "b.bias", "c.bias", "d.weight"]

    for sent, zeros in run_ranks(2, buckets_of, order):
        last = sent[-3:]  # 1 MiB at most in the first, the complex one apart
        real = [name for bucket in last for name in bucket if name != "c.bias"]
        assert real == [name for name in order if name != "c.bias"]
        assert zeros == [True] * 8


def memory_of_gradients(arguments: list[str]) -> tuple[list[int], int]:
    """(bytes of all storages in which gradients lay during each step, those of the parameters)."""
    run = build(load(arguments), "accumulate")
    learner = run.learner
    compute = run.watch(compute_gradient)
    learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)
    held: list[Tensor] = []
    found = []

    def look(*_: Any) -> None:
        held.extend(p.grad for p in learner.parameters if p.grad is not None)

    for window in run.windows:
        hook = learner.module.register_forward_pre_hook(look)
        compute(learner, window)
        hook.remove()
        look()
        found.append(stored_bytes(held))
        held.clear()
        update(learner, 0.1)
    run.close("finished", 0)
    return found, stored_bytes(learner.parameters)


def test_gradients_lie_in_memory_once(run_ranks: Any, tmp_path: Path) -> None:
    """From the first step on, while micro-batches are added up and after the reduction."""
    given = ("data.args.size=24", "batch.micro=1", "model.args.hidden=[40]")

    for world_size in (1, 2):
        arguments = argv(tmp_path, *given, f"name={world_size}")
        for of_steps, of_parameters in run_ranks(world_size, memory_of_gradients, arguments):
            assert of_steps == [of_parameters] * 3


def test_the_order_of_a_checkpoint_holds_where_other_parameters_are_trained() -> None:
    order = BucketOrder(["a", "b", "c"], ["c", "a", "b"])
    order.load_state_dict({"order": ["gone", "b", "a"]})

    assert order.state_dict() == {"order": ["b", "a", "c"]}
