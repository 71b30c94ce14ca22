"""Nothing in a step asks for a number that is still to be computed: tensors without values would
raise there.

Those of torch's own FakeTensorMode. What a GPU adds (copies from the host, streams) only tests/gpu
can show.
"""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.helpers import PerToken
from train.accumulate import compute_gradient
from train.batch.window import MicroBatch, Window
from train.config.recipe import Optimizer as OptimizerConfig
from train.data.device_prefetch import Feed
from train.distributed.norms import scale_down
from train.distributed.ranks import Ranks
from train.distributed.replicated import Replicated
from train.evaluation import ema
from train.optim.batch_scaling import Scaled
from train.optim.optimizer import can_skip_on_device, make_optimizer
from train.optim.skipped_steps import SkippedSteps
from train.step import Learner, update

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.1},
    "adam": {},
    "sgd": {"momentum": 0.9},
}


@pytest.fixture(autouse=True)
def _a_second_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """copy.deepcopy knows no fake tensors (torch 2.13): the average has a model made for it."""
    monkeypatch.setattr(ema, "_copied", lambda module: PerToken())


class Task:
    """Cross-entropy per token, and a term of its own beside it."""

    def loss_sum(self, model: Any, batch: Any) -> dict[str, Tensor]:
        outputs = model(batch["inputs"])
        loss = nn.functional.cross_entropy(outputs.float(), batch["labels"], reduction="sum")
        return {"loss": loss, "size": outputs.float().square().sum()}


def learner_of(optimizer: str, precision: str, args: dict[str, Any]) -> Learner:
    module = PerToken()
    if precision == "bf16":  # as accelerate does it
        module.forward = torch.autocast("cpu", torch.bfloat16)(module.forward)  # type: ignore[method-assign]
    parameters = dict(module.named_parameters())
    made = make_optimizer(
        OptimizerConfig(target=optimizer, lr=0.1, args=args), Scaled(0.1, args), parameters
    )
    ranks: Any = Ranks()
    parallel = Replicated(module, ranks)
    parallel.clip = scale_down  # as on a GPU
    return Learner(
        accelerator=Accelerator(cpu=True),
        device=CPU,
        world_size=1,
        parallel=parallel,
        model=module,
        module=module,
        parameters=list(parameters.values()),
        dtype=torch.float32,
        feed=Feed(CPU, torch.float32),
        task=Task(),  # type: ignore[arg-type]
        coefficients={"loss": 1.0, "size": 0.01},
        optimizer=made,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        skips_on_device=can_skip_on_device(made),
        max_grad_norm=1.0,
        stop_at_nonfinite=False,
        skips=SkippedSteps(),
    )


def window_of(k: int, micro_steps: int) -> Window:
    batches = []
    for _ in range(micro_steps):
        batch = {"inputs": torch.randn(2, 7, 6), "labels": torch.randint(3, (2, 7))}
        batches.append(MicroBatch(batch, 2))
    weights = {"loss": 14.0 * micro_steps, "size": 2.0 * micro_steps}
    samples = 2 * micro_steps
    cut: Any = tuple(batches)
    return Window(
        k=k, epoch=0, micro_batches=cut, samples=samples, weights=weights, last_of_epoch=False
    )


def three_steps(optimizer: str, precision: str, micro_steps: int, args: dict[str, Any]) -> Learner:
    learner = learner_of(optimizer, precision, args)
    ema.Ema(learner, 0.9)
    for k in (1, 2, 3):
        compute_gradient(learner, window_of(k, micro_steps))
        update(learner, 0.1)
    return learner


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_steps", [1, 4])
def test_no_step_asks_for_a_number(optimizer: str, precision: str, micro_steps: int) -> None:
    with FakeTensorMode():
        learner = three_steps(optimizer, precision, micro_steps, OPTIMIZERS[optimizer])

    assert learner.optimizer.defaults["fused"]
    assert len(learner.skips._skipped) == 3


@pytest.mark.parametrize(
    ("optimizer", "args"), [("rmsprop", {}), ("sgd", {"momentum": 0.9, "dampening": 0.1})]
)
def test_the_one_read_of_those_that_cannot_skip_on_the_device(
    optimizer: str, args: dict[str, Any]
) -> None:
    """The host asks whether the gradient is finite: once in each step, as docs/edges.md says."""
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        three_steps(optimizer, "fp32", 1, args)


def test_the_check_sees_a_read_in_a_micro_step() -> None:
    class Reading(Task):
        def loss_sum(self, model: Any, batch: Any) -> dict[str, Tensor]:
            losses = super().loss_sum(model, batch)
            losses["loss"].item()
            return losses

    with FakeTensorMode():
        learner = learner_of("adamw", "fp32", {})
        learner.task = Reading()  # type: ignore[assignment]
        with pytest.raises(DataDependentOutputException):
            compute_gradient(learner, window_of(1, 1))
