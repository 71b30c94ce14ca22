"""What `--plan --memory` prints: what fits, as text and as JSON. Each figure names its source."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.batch import ranks
from train.memory.fits import RESERVE, SHARE, Fit, Table
from train.memory.memory_trace import AS_CONFIGURED, MemoryTrace
from train.memory.sizes import GIB, MIB, size_text

SHOWN = ("weights", "gradients", "optimizer", "samples", "activations", "ema")


@dataclass(frozen=True, kw_only=True)
class Page:
    memory: int  # bytes of each rank's GPU
    usable: int
    trace: MemoryTrace
    tables: Sequence[Table]
    recommended: Fit | None
    line: str | None  # the command to run

    def as_dict(self) -> dict[str, Any]:
        """For --json. All bytes are predicted unless `source` names something else."""
        model = asdict(self.trace)
        del model["peaks"]
        return {
            "memory_bytes": self.memory,
            "usable_bytes": self.usable,
            "model": model,
            "ranks": [asdict(table) for table in self.tables],
            "recommended": None if self.recommended is None else asdict(self.recommended),
            "line": self.line,
        }

    def lines(self) -> list[str]:
        lines = list(self._head())
        for table in self.tables:
            lines.extend(_table_lines(table))
        lines.extend(self._command())
        return lines

    def _head(self) -> Iterator[str]:
        trace = self.trace
        yield (
            f"memory    {size_text(self.memory)} on each rank, of which {size_text(self.usable)} "
            f"are counted on: {SHARE:.0%}, less {size_text(RESERVE)} for CUDA itself"
        )
        yield (
            "          predicted from the operations of a step, without memory; nothing here was "
            "measured"
        )
        if trace.parameters:
            state = "unknown without a step"
            if trace.optimizer is not None:
                state = f"{size_text(trace.optimizer)} predicted"
            yield (
                f"model     {trace.parameters:,} parameters: weights and buffers "
                f"{size_text(trace.weights)}, gradients {size_text(trace.gradients)}, "
                f"optimizer {state}, average {size_text(trace.ema)}"
            )
        failure = trace.failures.get(AS_CONFIGURED)
        if failure:
            yield (
                "warning   no peak: a step of this model cannot be traced without memory "
                f"({failure})"
            )
        for note in trace.notes:
            yield f"          {note}"

    def _command(self) -> Iterator[str]:
        if self.line is not None:
            yield f"run       {self.line}"
        elif self.trace.peaks:
            yield (
                "no fit    nothing that was tried fits: use a smaller model, shorter samples, or "
                "more memory"
            )


def _table_lines(table: Table) -> Iterator[str]:
    yield ""
    yield from _rows(table)
    for name, fit in table.others.items():
        fits = "fits" if fit.fits else "does not fit"
        yield f"  {name}: batch.micro={fit.micro} {fits}, {size_text(fit.peak)} predicted"
    if table.divided is not None:
        yield (
            f"  LAUNCHER=configs/accelerate/fsdp2.yaml: about {size_text(table.divided)} in place "
            "of the largest that fits, and the largest block besides (estimated, not traced); "
            "batch.sync=micro keeps no unsharded gradients there"
        )
    megabytes = table.all_reduce_bytes_per_sample / 1e6
    yield (
        f"  all-reduce {megabytes:.3f} MB per sample and rank (predicted; batch.sync=micro: at "
        "each micro-step)"
    )
    shared = ""
    if table.shared_bytes:
        shared = f", {size_text(table.shared_bytes)} of it in shared memory (/dev/shm)"
    yield (
        f"  host: {size_text(table.host_bytes)} of samples on each rank{shared} (predicted), "
        "beside Python and torch"
    )


def _rows(table: Table) -> Iterator[str]:
    """The table itself, all figures in one unit."""
    # One unit, so that a column can be compared by eye.
    unit = "MiB"
    unit_bytes = MIB
    if any(fit.peak >= GIB for fit in table.rows):
        unit = "GiB"
        unit_bytes = GIB
    yield (
        f"{ranks(table.world_size)}, {table.share} samples each in a step ({unit}, predicted, at "
        "the peak)"
    )
    if table.rows:
        yield _row(["micro", "accumulation", "peak", *SHOWN, "fits"])
    for fit in table.rows:
        sizes = [fit.peak, *(fit.anatomy.get(kind, 0) for kind in SHOWN)]
        figures = [f"{size / unit_bytes:.2f}" for size in sizes]
        fits = "yes" if fit.fits else "no"
        yield _row([str(fit.micro), str(fit.accumulation_steps), *figures, fits])


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>13}" for cell in cells)
