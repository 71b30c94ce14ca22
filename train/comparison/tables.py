"""The tables of a comparison, as text in cells. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from train.comparison.cost import KINDS, PHASES, Cost
from train.comparison.facts import Comparison
from train.comparison.figures import (
    UNKNOWN,
    estimate,
    figure,
    hours_figure,
    plain,
    scaled,
    sizes,
    with_spread,
)
from train.comparison.outcome import Outcome
from train.errors import counted

LONGEST = 40
"""Characters of a value in the table of keys."""
SET_UP = {
    "effective_batch": "effective batch",
    "micro_batch": "micro-batch",
    "accumulation_steps": "accumulation",
    "world_size": "ranks",
    "loop": "loop",
    "precision": "precision",
    "lr_peak": "peak rate",
    "total_steps": "steps",
    "total_samples": "samples",
    "exact": "exact",
    "device": "device",
}


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def without_empty_columns(self) -> "Table":
        """What no set-up measured is absent."""
        kept = [
            i
            for i in range(len(self.header))
            if i == 0 or any(row[i] != UNKNOWN for row in self.rows)
        ]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.title, tuple(self.header[i] for i in kept), rows)

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, *self.rows]
        aligned = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *(f"  {line}" for line in aligned)])


def tables(comparison: Comparison) -> list[Table]:
    several = [
        _set_up(comparison),
        _outcome(comparison),
        _speed(comparison),
        _shares(comparison),
        _memory(comparison),
    ]
    kept = [table.without_empty_columns() for table in several]
    return [table for table in [*kept, _keys(comparison)] if len(table.header) > 1 and table.rows]


def _set_up(comparison: Comparison) -> Table:
    rows = []
    for group in comparison.groups:
        told = {"precision": group.first.identity.get("precision"), **group.first.derived}
        cells = [plain(told.get(key)) for key in SET_UP]
        cells.append(", ".join(run.verified_at for run in group.runs if run.verified_at) or UNKNOWN)
        rows.append((group.label, str(len(group.runs)), ", ".join(map(str, group.seeds)), *cells))
    return Table(
        "Set-up", ("set-up", "runs", "seeds", *SET_UP.values(), "verified at step"), tuple(rows)
    )


def _outcome(comparison: Comparison) -> Table:
    metrics = list(
        dict.fromkeys(metric for outcome in comparison.outcomes for metric in outcome.metrics)
    )
    losses = list(
        dict.fromkeys(metric for outcome in comparison.outcomes for metric in outcome.apart)
    )
    equal = bool(metrics) and len({outcome.samples for outcome in comparison.outcomes}) == 1
    rows = [
        (
            group.label,
            plain(outcome.samples),
            figure(outcome.steps),
            *(with_spread(outcome.metrics.get(metric), len(group.runs)) for metric in metrics),
            *(_apart(outcome, metric) for metric in losses),
            estimate(outcome.noise_scale, outcome.noise_scale_range, len(group.runs)),
            estimate(outcome.break_even, outcome.break_even_range, len(group.runs)),
        )
        for group, outcome in zip(comparison.groups, comparison.outcomes, strict=True)
    ]
    differences = (f"max |{metric} - first|" for metric in losses)
    header = (
        "set-up",
        "samples",
        "steps",
        *metrics,
        *differences,
        "noise scale",
        "fastest micro-steps",
    )
    return Table(
        f"Outcome {'at equal samples seen' if equal else 'at the end of each'}", header, tuple(rows)
    )


def _apart(outcome: Outcome, metric: str) -> str:
    agreed = outcome.apart.get(metric)
    return f"{agreed.largest:.2g} ({counted(agreed.rows, 'row')})" if agreed else UNKNOWN


def _speed(comparison: Comparison) -> Table:
    target, rows = comparison.target, []
    for index, group in enumerate(comparison.groups):
        hours = comparison.cost(index, lambda cost: cost.hours)
        step = [
            comparison.cost(index, number)
            for number in (lambda cost: cost.step_p50_seconds, lambda cost: cost.step_p95_seconds)
        ]
        reached = UNKNOWN
        if target:
            part = f" ({target.reached[index]} of {len(group.runs)})"
            reached = hours_figure(target.hours[index]) + (
                part if target.reached[index] < len(group.runs) else ""
            )
        rows.append(
            (
                group.label,
                with_spread(
                    comparison.cost(index, lambda cost: cost.samples_per_second), len(group.runs)
                ),
                *(with_spread(scaled(each, 1000), len(group.runs)) for each in step),
                with_spread(
                    scaled(comparison.cost(index, lambda cost: cost.mfu), 100), len(group.runs)
                ),
                with_spread(
                    scaled(comparison.cost(index, lambda cost: cost.cpu_wait), 100), len(group.runs)
                ),
                hours_figure(hours),
                reached,
            )
        )
    to = f"to {target.metric} <= {target.loss:.4g}" if target else "to the target"
    header = (
        "set-up",
        "samples/s",
        "step p50 (ms)",
        "step p95 (ms)",
        "MFU (%)",
        "no processor (%)",
        "training time",
        to,
    )
    return Table("Cost in time", header, tuple(rows))


def _shares(comparison: Comparison) -> Table:
    def cell(index: int, phase: str) -> str:
        share = comparison.cost(index, lambda cost: cost.shares.get(phase))
        return f"{100 * share.mean:.0f} %" if share else UNKNOWN

    rows = [
        (group.label, *(cell(index, phase) for phase in PHASES.values()))
        for index, group in enumerate(comparison.groups)
    ]
    return Table("Share of a step's time", ("set-up", *PHASES.values()), tuple(rows))


def _memory(comparison: Comparison) -> Table:
    """Every memory metric that there is."""
    costs = [cost for of_group in comparison.costs for cost in of_group]
    metrics = list(dict.fromkeys(metric for cost in costs for metric in cost.peaks_gib))
    rows = [
        (
            group.label,
            *(sizes(comparison.cost(index, _peak(metric)), len(group.runs)) for metric in metrics),
        )
        for index, group in enumerate(comparison.groups)
    ]
    header = ("set-up", *(_metric_title(metric) for metric in metrics))
    return Table("Memory: the largest value of a run", header, tuple(rows))


def _peak(metric: str) -> Callable[[Cost], float | None]:
    return lambda cost: cost.peaks_gib.get(metric)


def _metric_title(metric: str) -> str:
    return KINDS.get(metric) or metric.removeprefix("memory/").removesuffix("_gib").replace(
        "_", " "
    )


def _keys(comparison: Comparison) -> Table:
    rows = [
        (key.name, key.kind, *(_shortened(value) for value in key.values))
        for key in comparison.keys
    ]
    header = ("key", "changes the", *(group.label for group in comparison.groups))
    return Table("Keys that differ", header, tuple(rows))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
