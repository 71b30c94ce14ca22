"""`--plan --memory`: what fits, for the screen and as JSON. Every figure says where it
comes from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.batch import ranks
from train.memory.fits import RESERVE, SHARE, Fit, Table
from train.memory.foresight import AS_CONFIGURED, Foresight

GIB = 2**30
SHOWN = ("weights", "gradients", "optimizer", "samples", "activations", "ema")


@dataclass(frozen=True, kw_only=True)
class Page:
    memory: int  # bytes of each rank's GPU
    usable: int
    foresight: Foresight
    tables: Sequence[Table]
    recommended: Fit | None
    line: str | None

    def as_dict(self) -> dict[str, Any]:
        """For --json. All bytes are predicted unless `source` says otherwise."""
        traced = asdict(self.foresight)
        del traced["peaks"]
        return {
            "memory_bytes": self.memory,
            "usable_bytes": self.usable,
            "model": traced,
            "ranks": [asdict(table) for table in self.tables],
            "recommended": None if self.recommended is None else asdict(self.recommended),
            "line": self.line,
        }

    def lines(self) -> list[str]:
        return [
            *self._head(),
            *(line for table in self.tables for line in _of_ranks(table)),
            *self._end(),
        ]

    def _head(self) -> Iterator[str]:
        yield (
            f"memory    {_gib(self.memory)} on each rank, of which {_gib(self.usable)} are counted "
            f"on: {SHARE:.0%}, less {_gib(RESERVE)} for CUDA itself"
        )
        yield (
            "          predicted from the operations of a step, without memory; nothing here was "
            "measured"
        )
        traced = self.foresight
        failure = traced.failures.get(AS_CONFIGURED)
        state = (
            "unknown without a step"
            if traced.optimizer is None
            else f"{_gib(traced.optimizer)} predicted"
        )
        if traced.parameters:
            yield (
                f"model     {traced.parameters:,} parameters: weights and buffers "
                f"{_gib(traced.weights)}, gradients {_gib(traced.gradients)}, optimizer {state}, "
                f"average {_gib(traced.ema)}"
            )
        if failure:
            yield (
                "warning   no peak: a step of this model cannot be traced without memory "
                f"({failure})"
            )
        for note in traced.notes:
            yield f"          {note}"

    def _end(self) -> Iterator[str]:
        if self.line is not None:
            yield f"type      {self.line}"
            return
        if self.foresight.peaks:
            yield (
                "type      nothing that was tried fits: a smaller model, shorter samples, or "
                "more memory"
            )


def _of_ranks(table: Table) -> Iterator[str]:
    yield ""
    unit, size_of = ("GiB", GIB) if any(fit.peak >= GIB for fit in table.rows) else ("MiB", 2**20)
    yield (
        f"{ranks(table.world_size)}, {table.share} samples each in a step ({unit}, predicted, at "
        "the peak)"
    )
    if table.rows:
        yield _row(["micro", "accumulation", "peak", *SHOWN, "fits"])
    for fit in table.rows:
        sizes = [
            f"{size / size_of:.2f}"
            for size in (fit.peak, *(fit.anatomy.get(kind, 0) for kind in SHOWN))
        ]
        yield _row(
            [f"{fit.micro}", f"{fit.accumulation_steps}", *sizes, "yes" if fit.fits else "no"]
        )
    for name, fit in table.others.items():
        says = "fits" if fit.fits else "does not fit"
        yield f"  {name}: batch.micro={fit.micro} {says}, {_gib(fit.peak)} predicted"
    if table.divided is not None:
        yield (
            f"  LAUNCHER=configs/accelerate/fsdp2.yaml: about {_gib(table.divided)} in place of "
            "the largest that fits, and the largest block besides (estimated, not traced); "
            "batch.sync=micro keeps no whole gradients there"
        )
    megabytes = table.all_reduce_bytes_per_sample / 1e6
    yield (
        f"  all-reduce {megabytes:.3f} MB per sample and rank (predicted; batch.sync=micro: at "
        "each micro-step)"
    )
    shared = (
        f", {_gib(table.shared_bytes)} of it in shared memory (/dev/shm)"
        if table.shared_bytes
        else ""
    )
    yield (
        f"  host: {_gib(table.host_bytes)} of samples on each rank{shared} (predicted), beside "
        "Python and torch"
    )


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>13}" for cell in cells)


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"
