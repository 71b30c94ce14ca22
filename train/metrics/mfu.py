"""Model FLOPs utilisation (MFU, Chowdhery et al. 2022, arXiv:2204.02311): the share of the devices'
peak that is used.

    MFU = samples per second * model FLOPs per sample / the sum of the peaks of all ranks' devices

FLOPs are counted before the first step, on two samples and outside of any wrapper, by torch's own
counter: matrix products, convolutions and attention, forward and backward (causal attention as if
it were full); what works element by element is not counted. Of the backward pass no more than twice
the forward counts, as the model needs it: what activation checkpointing or flash attention computes
again is no work of the model.

Absent rather than wrong: where the peak of a device is not known (a CPU, a slice of a GPU), where
samples differ in length (batch.micro_tokens), or where the model calls an operator that does such
work and has no formula. Kernels that are called past torch's dispatcher cannot be seen, and would
be missing from the count. No GPU has confirmed these.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from train import metric_names
from train.batch.window import Batch
from train.config import Config
from train.data.device_prefetch import to_device
from train.distributed.ranks import Ranks
from train.exactness.error_bounds import arithmetic
from train.models.preserve_state import undisturbed
from train.parts import Metrics, Part
from train.report import Reporter
from train.step import Learner
from train.tasks import by_term

H100_SXM = {"bf16": 989.4e12, "fp16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}
A100 = {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}
PEAKS = {
    "NVIDIA H100 80GB HBM3": H100_SXM,
    "NVIDIA H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51.2e12},
    "NVIDIA H100 NVL": {"bf16": 835.5e12, "fp16": 835.5e12, "tf32": 417.5e12, "fp32": 60e12},
    "NVIDIA H200": H100_SXM,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA L40S": {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
}
"""FLOP/s by the driver's name of a card and by arithmetic, dense (without sparsity), products
summed in float32.

Sources: NVIDIA's H100 white paper (GH100, SXM5 and PCIe) and its data sheets of H100 NVL, H200,
A100 and L40S. One more card is one more line.
"""

_HEAVY = re.compile(r"mm|mv|dot|matmul|conv(?!ert)|attention|rnn|lstm|gru|fft|linalg|cdist|einsum")


def part(learner: Learner, samples: Batch, ranks: Ranks, report: Reporter, config: Config) -> Part:
    """`samples`: some that were read already, two of which the FLOPs are counted on. All ranks call
    this together.
    """
    measure = utilisation(learner, samples, ranks, report, config)

    def measured(metrics: Metrics) -> Metrics:
        return {**metrics, **measure()}

    return Part(name="mfu", metrics=measured)


def utilisation(
    learner: Learner, samples: Batch, ranks: Ranks, report: Reporter, config: Config
) -> Callable[[], dict[str, float]]:
    """Gives {metric: value} since its last call; nothing where it cannot be known."""
    cuda = learner.device.type == "cuda"
    card = torch.cuda.get_device_name(learner.device) if cuda else learner.device.type
    peaks = ranks.gather(PEAKS.get(card, {}).get(arithmetic(learner, config.precision).split()[0]))
    unknown = None in peaks or config.batch.micro_tokens is not None
    flops = (
        None
        if unknown
        else flops_per_sample(learner, {name: column[:2] for name, column in samples.items()})
    )
    if flops is None:
        return dict
    share = flops / sum(peaks)
    seen, seconds = report.progress.samples_seen, report.clock.seconds

    def take() -> dict[str, float]:
        nonlocal seen, seconds
        with report.clock.paused():  # so that it has counted up to now
            before, since = seen, seconds
            seen, seconds = report.progress.samples_seen, report.clock.seconds_so_far
        return {metric_names.MFU: share * (seen - before) / (seconds - since)}

    return take


def flops_per_sample(learner: Learner, batch: Batch) -> float | None:
    """Of the model, forward and backward, not compiled: a compiled kernel has no formula.

    Leaves gradients, buffers and random numbers as they were.
    """
    seen = _Operators()
    try:
        with undisturbed(learner.module, learner.device), torch.compiler.set_stance("force_eager"):
            on_device = to_device(batch, learner.device, learner.dtype)
            with FlopCounterMode(display=False) as counter, seen:
                losses = by_term(learner.task.loss_sum(learner.module, on_device))
                forward = counter.get_total_flops()
                _go_back(learner, list(losses.values()))
                backward = counter.get_total_flops() - forward
    except Exception:  # whatever a model does that cannot be counted: it may still be trained
        return None
    if seen.unknown or not forward:
        return None
    return (forward + min(backward, 2 * forward)) / len(next(iter(batch.values())))


def _go_back(learner: Learner, losses: list[Tensor]) -> None:
    # the graph does not hold its parameters: autograd.grad would not go back
    if learner.parallel.is_sharded:
        torch.autograd.backward(losses)
        learner.optimizer.zero_grad(set_to_none=True)
    else:
        torch.autograd.grad(losses, learner.parameters, allow_unused=True)


class _Operators(TorchDispatchMode):
    """Notes the operators that may do much work and that the counter has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        is_own = not name.startswith(("aten.", "prim.", "c10d.", "fsdp."))
        if func._overloadpacket not in flop_registry and (is_own or _HEAVY.search(name)):
            self.unknown.add(name)
        return func(*args, **(kwargs or {}))
