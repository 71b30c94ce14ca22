"""Model FLOPs utilisation (MFU): the used share of the devices' peak.

Source: Chowdhery et al. 2022, arXiv:2204.02311.

    MFU = samples per second * model FLOPs per sample / the sum of the peaks of all ranks' devices

torch's FlopCounterMode counts the FLOPs before the first step, on two samples, without a wrapper:
matrix products, convolutions and attention, forward and backward (causal attention as if it were
full). Elementwise operators are not counted. The backward pass counts at most twice the forward
pass, as much as the model needs: what activation checkpointing or flash attention computes again is
no work of the model.

The metric is absent where it would be wrong: where the peak of a device is unknown (a CPU, a slice
of a GPU), where samples differ in length (batch.micro_tokens), or where the model calls an operator
that does such work and has no formula. Kernels that bypass torch's dispatcher cannot be seen, and
would be missing from the count. Not yet confirmed on a GPU.
"""

import re
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
from train.models.preserve_state import preserve_state
from train.parts import Metrics, Part
from train.report import Reporter
from train.step import Learner
from train.tasks import by_term

# From NVIDIA's H100 white paper (GH100, SXM5). Data sheets give tensor cores with 2:4 sparsity:
# twice as much.
H100_SXM = {"bf16": 989.4e12, "fp16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}
# From NVIDIA's data sheet of the A100: the same for SXM and PCIe.
A100 = {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}
PEAKS = {
    "NVIDIA H100 80GB HBM3": H100_SXM,
    # The white paper (GH100, PCIe).
    "NVIDIA H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51.2e12},
    # Its data sheet.
    "NVIDIA H100 NVL": {"bf16": 835.5e12, "fp16": 835.5e12, "tf32": 417.5e12, "fp32": 60e12},
    # Its data sheet: the same chip as the H100 SXM, with more memory.
    "NVIDIA H200": H100_SXM,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    # Its data sheet.
    "NVIDIA L40S": {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
}
"""FLOP/s by the driver's name of a card and by arithmetic: dense (no sparsity), products summed in
float32. To add a card, add a line.

Lightning's table (lightning.fabric.utilities.throughput) has the same figures for H100 and A100, to
its rounding.
"""

_MAY_BE_HEAVY = re.compile(
    r"mm|mv|dot|matmul|conv(?!ert)|attention|rnn|lstm|gru|fft|linalg|cdist|einsum"
)
"""Names of operators that may do much work."""

TORCHS_OWN = ("aten.", "prim.", "c10d.", "fsdp.")
"""How the names of torch's own operators begin."""


def part(learner: Learner, samples: Batch, ranks: Ranks, report: Reporter, config: Config) -> Part:
    """`samples`: some that were read already; the FLOPs are counted on two of them.

    All ranks call this together.
    """
    flops_per_second = _peak_of_all(learner, ranks, config)
    if flops_per_second is None or config.batch.micro_tokens is not None:
        return Part(name="mfu")
    two_samples = {name: column[:2] for name, column in samples.items()}
    flops = flops_per_sample(learner, two_samples)
    if flops is None:
        return Part(name="mfu")
    utilisation = Utilisation(flops / flops_per_second, report)
    return Part(name="mfu", metrics=utilisation.metrics)


def _peak_of_all(learner: Learner, ranks: Ranks, config: Config) -> float | None:
    """FLOP/s of the devices of all ranks together; None where one is unknown."""
    card = learner.device.type
    if card == "cuda":
        card = torch.cuda.get_device_name(learner.device)
    kind = arithmetic(learner, config.precision).split()[0]
    peaks = ranks.gather(PEAKS.get(card, {}).get(kind))
    if None in peaks:
        return None
    return sum(peaks)


class Utilisation:
    """Since the last row."""

    def __init__(self, seconds_per_sample: float, report: Reporter) -> None:
        """`seconds_per_sample`: what a sample would take at the peak."""
        self._seconds_per_sample = seconds_per_sample
        self._report = report
        self._samples_seen = report.progress.samples_seen
        self._seconds = report.clock.seconds

    def metrics(self, metrics: Metrics) -> Metrics:
        samples_before = self._samples_seen
        seconds_before = self._seconds
        with self._report.clock.paused():  # so that it has counted up to now
            self._samples_seen = self._report.progress.samples_seen
            self._seconds = self._report.clock.seconds_so_far
        samples = self._samples_seen - samples_before
        seconds = self._seconds - seconds_before
        return {**metrics, metric_names.MFU: self._seconds_per_sample * samples / seconds}


def flops_per_sample(learner: Learner, batch: Batch) -> float | None:
    """Of the model, forward and backward, not compiled: a compiled kernel has no formula.

    Leaves gradients, buffers and random numbers as they were. None where it cannot be counted.
    """
    operators = _Operators()
    try:
        with (
            preserve_state(learner.module, learner.device),
            torch.compiler.set_stance("force_eager"),
        ):
            on_device = to_device(batch, learner.device, learner.dtype)
            with FlopCounterMode(display=False) as counter, operators:
                losses = by_term(learner.task.loss_sum(learner.module, on_device))
                forward = counter.get_total_flops()
                _backward(learner, list(losses.values()))
                backward = counter.get_total_flops() - forward
    except Exception:  # whatever a model does that cannot be counted: it may still be trained
        return None
    if operators.unknown or not forward:
        return None
    samples = len(next(iter(batch.values())))
    return (forward + min(backward, 2 * forward)) / samples


def _backward(learner: Learner, losses: list[Tensor]) -> None:
    # FSDP2's graph does not hold the sharded parameters: autograd.grad would give zeros for them.
    if learner.parallel.is_sharded:
        torch.autograd.backward(losses)
        learner.optimizer.zero_grad(set_to_none=True)
    else:
        torch.autograd.grad(losses, learner.parameters, allow_unused=True)


class _Operators(TorchDispatchMode):
    """Notes the operators that may do much work and for which FlopCounterMode has no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        # What an operator of other libraries does cannot be known from its name.
        may_be_heavy = not name.startswith(TORCHS_OWN) or _MAY_BE_HEAVY.search(name)
        if func._overloadpacket not in flop_registry and may_be_heavy:
            self.unknown.add(name)
        return func(*args, **(kwargs or {}))
