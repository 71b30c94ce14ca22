"""What issue and contract ask of the costs, beside what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.campaigns.bench_tables import (
    CHECKS,
    HAND,
    NO_ROWS,
    OURS,
    Cell,
    Fresh,
    ratio_to_hand,
    start_seconds,
    table,
)

PER_MICRO_STEP = 20  # us
PER_STEP = {1: 120, 2: 300}  # us, by ranks
LOGGING = 0.01
START, PEAK = 1.2, 1.25
SAME = 1e-5
COUNTED_ON_THE_HOST = 1  # the labels, of a batch that has not travelled yet
READ_BY_A_CPU = 2  # the norm: for the clip, and whether it is finite


@dataclass(frozen=True)
class Bar:
    what: str
    measured: str
    is_met: bool


def bars(cells: Sequence[Cell], fresh: dict[str, Fresh]) -> str:
    found = [*of_counts(cells), *of_times(cells), *of_fresh(fresh)]
    rows = [(bar.what, bar.measured, "yes" if bar.is_met else "**no**") for bar in found]
    return table(("bar", "measured", "met"), rows)


def of_counts(cells: Sequence[Cell]) -> Iterator[Bar]:
    apart = max(max(cell.found["apart"].values()) for cell in cells)
    yield Bar(
        "the same work in each loop: first moments of AdamW, relative", f"{apart:.0e}", apart < SAME
    )
    same = all(
        cell.count(OURS, each) == cell.count(HAND, each)
        for cell in cells
        for each in ("reductions", "bytes")
    )
    yield Bar(
        "gradient reductions, and their bytes, as in (a)",
        "equal in each cell" if same else "they differ",
        same,
    )
    for ranks, limit in ((1, 0), (2, 1)):
        most = max(cell.count(OURS, "other messages") for cell in cells if cell.ranks == ranks)
        yield Bar(
            f"other messages per step, {ranks} rank(s): at most {limit}",
            f"{most:.0f}",
            most <= limit,
        )
    reads = max(cell.count(OURS, "host reads") for cell in cells)
    is_gpu = cells[0].clock == "gpu"
    allowed = COUNTED_ON_THE_HOST + (0 if is_gpu else READ_BY_A_CPU)
    yield Bar(
        f"numbers read in a step: {allowed}, of the host's own memory",
        f"{reads:.0f}",
        reads <= allowed,
    )


def of_times(cells: Sequence[Cell]) -> Iterator[Bar]:
    for cell in (c for c in cells if c.name == "tiny"):
        own, lean = cell.best(OURS), cell.best(CHECKS)
        micro = cell.accumulation_steps * PER_MICRO_STEP
        limit = PER_STEP[cell.ranks] + (micro if cell.accumulation_steps > 1 else 0)
        where = f"{cell.ranks} rank(s), accumulation {cell.accumulation_steps}"
        yield Bar(
            f"{where}: at or below the lean loop with norm, clip and check (A/A: "
            f"{cell.noise():.0f})",
            f"{own.median:.0f} against {lean.median:.0f} us over (a)",
            own.median <= lean.median,
        )
        yield Bar(f"{where}: at most {limit} us over (a)", str(own), own.median <= limit)
    for cell in (c for c in cells if c.name == "gpt"):
        share = cell.mean(OURS) / cell.mean(NO_ROWS) - 1
        where = f"gpt, {cell.ranks} rank(s), accumulation {cell.accumulation_steps}"
        yield Bar(f"{where}: default logging at most 1 %", f"{share:.1%}", share <= LOGGING)


def of_fresh(fresh: dict[str, Fresh]) -> Iterator[Bar]:
    for name, processes in fresh.items():
        start = ratio_to_hand(processes, "ours", start_seconds).median
        yield Bar(
            f"{name}: start-up at most {START} of (a), trial included",
            f"{start:.2f}",
            start <= START,
        )
        peak = ratio_to_hand(processes, "ours", lambda process: float(process["peak_mib"])).median
        yield Bar(f"{name}: peak memory at most {PEAK} of (a)", f"{peak:.2f}", peak <= PEAK)
