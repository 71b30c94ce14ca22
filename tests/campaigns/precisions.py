"""Every precision, loop, wrapper and number of ranks against plain PyTorch: one big batch on one
process.

OMP_NUM_THREADS=1 python -m tests.campaigns.precisions [--write]        --write: into
docs/precision.md

Real ranks over gloo. At each of 50 steps the gradient that the optimizer is given is compared with
that of the whole effective batch at the same weights, in float64 and in the precision of the run;
then the curve with that of one rank and one micro-batch. What a CPU lacks is put in by hand:
autocast to float16 under the loop's own scaler, and for TF32 the rounding of what enters and leaves
each nn.Linear. Exit code 1 where a row is out of its bounds.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.campaigns.faults.table import commit
from tests.campaigns.launched import ROOT, write_between
from tests.campaigns.precision_runs import (
    CASES,
    EFFECTIVE,
    PRECISIONS,
    SIZE,
    Case,
    Found,
    Precision,
    Spec,
    measure,
    without_a_gpu,
    wrappers,
)
from tests.conftest import run_ranks
from tests.helpers import Array, distance, flat, rows, steps
from train import metric_names as names
from train.config import load, resolve
from train.exactness.error_bounds import BOUNDS

EPOCHS = 7  # 56 steps

CURVES = {
    "fp64": 1e-10,
    "fp32": 1e-5,
    "tf32": 2e-2,
    "fp16": 5e-2,
    "bf16": 5e-2,
    "bf16 parameters": 1e-1,
}
"""The largest difference of a loss from that of one rank and one micro-batch in 50 steps, over the
largest loss.
"""


def whole_batch(precision: Precision, arguments: list[str], weights: Array, ids: Array) -> Array:
    """The gradient of the mean loss of these samples at once, in `precision`."""
    config = load(arguments).config
    module = resolve(config.model.target, "train.models")(**config.model.args).to(precision.dtype)
    for part in module.modules():
        if (
            isinstance(part, nn.RMSNorm) and part.eps is None
        ):  # else float64 would be another function, not less rounding
            part.eps = torch.finfo(
                torch.float64 if config.precision == "fp64" else torch.float32
            ).eps
    parameters = list(module.parameters())
    nn.utils.vector_to_parameters(torch.from_numpy(weights).to(precision.dtype), parameters)
    data = resolve(config.data.source, "")(**config.data.args).with_format("torch")[:]
    inputs = data["inputs"][ids.tolist()]
    if inputs.is_floating_point():
        inputs = inputs.to(precision.dtype)
    with without_a_gpu(precision):
        with torch.autocast(
            "cpu", precision.autocast or torch.bfloat16, enabled=precision.autocast is not None
        ):
            logits = module(inputs)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = cross_entropy(wide.flatten(0, -2), data["labels"][ids.tolist()].flatten())
        scale = 1024.0 if precision.autocast == torch.float16 else 1.0
        return flat(torch.autograd.grad(loss * scale, parameters)) / scale


@dataclass(frozen=True, kw_only=True)
class Row:
    spec: Spec
    of_float64: float  # the worst step's error, over all ranks
    of_same: float
    of_curve: float  # the largest relative difference of a loss
    reductions: float
    memory_kib: float

    @property
    def is_right(self) -> bool:
        expected = 1 if self.spec.ranks > 1 else 0
        bounds = (
            self.of_same <= BOUNDS[self.spec.precision.name]
            and self.of_curve <= CURVES[self.spec.precision.name]
        )
        # FSDP2 fills up what it cannot cut evenly
        return bounds and int(self.reductions) == expected

    def __str__(self) -> str:
        spec = self.spec
        cells = [spec.case.name, spec.wrapper, spec.precision.name, str(spec.ranks), spec.loop]
        cells += [
            f"{error:.1e}"
            for error in (self.of_float64, self.of_same, BOUNDS[spec.precision.name], self.of_curve)
        ]
        cells += [f"{self.reductions:.3g}" if spec.ranks > 1 else "", f"{self.memory_kib:.1f}"]
        return f"| {' | '.join(cells)} | {'yes' if self.is_right else 'NO'} |"


HEAD = """\
| case | wrapper | precision | ranks | loop | error, float64 | error, same | bound | curve | reductions | KiB | right |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def compare(folder: Path, spec: Spec, arguments: list[str], of_ranks: Sequence[Found]) -> Row:
    errors: dict[str, list[float]] = {"float64": [], "same": []}
    for k, ids in enumerate(steps(SIZE, EFFECTIVE, EPOCHS)[: len(of_ranks[0].gradients)], start=1):
        weights = of_ranks[0].weights[k - 1]
        for name, precision in (("float64", PRECISIONS[0]), ("same", spec.precision)):
            expected = whole_batch(precision, arguments, weights, ids)
            errors[name] += [distance(found.gradients[k], expected) for found in of_ranks]
    return Row(
        spec=spec,
        of_float64=max(errors["float64"]),
        of_same=max(errors["same"]),
        of_curve=_curve_difference(folder, spec),
        reductions=max(found.reductions for found in of_ranks),
        memory_kib=max(found.memory_kib for found in of_ranks),
    )


def _curve_difference(folder: Path, spec: Spec) -> float:
    """From one rank and one micro-batch in the same precision, which has run before; over the
    largest loss.
    """
    base = replace(spec, ranks=1, loop="standard", wrapper=wrappers(spec.precision, 1)[0])
    ours, expected = (
        np.array([row[names.LOSS] for row in rows(folder, names.LOSS, s.name)])
        for s in (spec, base)
    )
    return float(np.max(np.abs(ours - expected)) / np.max(expected))


def session(folder: Path, num_steps: int, case: Case, precision: Precision) -> Iterator[Row]:
    for ranks in (1, 2):
        pairs = product(wrappers(precision, ranks), ("standard", "accumulate"))
        specs = [Spec(case, precision, wrapper, ranks, loop) for wrapper, loop in pairs]
        asked = [(spec, spec.arguments(folder, num_steps)) for spec in specs]
        found = run_ranks(ranks, measure, asked)
        for (spec, arguments), of_ranks in zip(asked, zip(*found, strict=True), strict=True):
            yield compare(folder, spec, arguments, of_ranks)


INTRODUCTION = """\
`OMP_NUM_THREADS=1 python -m tests.campaigns.precisions --write` ({commit}): {steps} steps of AdamW, effective batch
{effective} of {size} samples (the last step of an epoch has 4), on real ranks over gloo; standard: one micro-batch per
rank, accumulate: micro-batches of 1.

- *error*: the worst step's relative error of the gradient against plain PyTorch, one backward pass over the whole batch
  at the same weights: in float64, and in the same precision. *bound*: what `verify` allows for the second.
- *curve*: the largest difference of a loss from that of one rank and one micro-batch, over the largest loss.
- *reductions*: numbers that a rank hands in per step, over the number of parameters; FSDP2 fills up what it cannot cut
  evenly.
- *KiB*: weights, gradients, optimizer and activations of a rank, as logged; activations are not counted under
  checkpointing.

tf32 is computed here by rounding what enters each product of an `nn.Linear` to 10 bits of mantissa, fp16 by autocast on
a CPU under the loop's own scaler: neither has been seen on a GPU.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/precision.md")
    parser.add_argument("--steps", type=int, default=50)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD, flush=True)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case, precision in product(CASES, PRECISIONS):
            if precision.name not in case.precisions:
                continue
            for row in session(Path(folder), asked.steps, case, precision):
                print(row, flush=True)
                found.append(row)
    if asked.write:
        introduction = INTRODUCTION.format(
            commit=commit(), steps=asked.steps, effective=EFFECTIVE, size=SIZE
        )
        table = "\n".join([HEAD, *map(str, found)])
        write_between(ROOT / "docs" / "precision.md", "precisions", f"{introduction}\n{table}")
    sys.exit(0 if all(row.is_right for row in found) else 1)


if __name__ == "__main__":
    main()
