"""The tables of a comparison, as text in cells. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import StringIO

from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable

from train.comparison.columns import union
from train.comparison.comparison import Comparison
from train.comparison.cost import KINDS, PHASES, Cost
from train.comparison.formatting import (
    UNKNOWN,
    format_estimate,
    format_hours,
    format_memory,
    format_number,
    format_spread,
    format_value,
)
from train.errors import counted

LONGEST_VALUE = 40
"""Characters in the table of keys."""
UNLIMITED = 100_000
"""Characters of a line: no table is so wide."""
SET_UP = "set-up"
DERIVED = {
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
"""{key of the plan: column}"""

Cell = Callable[[int], str]
"""Index of a set-up -> its text in a column."""


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = UNLIMITED) -> str:
        """In columns. Where the table is wider than `width`, cells are folded between words.

        Through a console of its own: rich ends the process where stdout has no reader any more.
        """
        indent = "  "
        gap = 2
        table = RichTable(box=None, pad_edge=False, padding=(0, gap, 0, 0))
        narrowest = 0
        for index, name in enumerate(self.header):
            cells = [name, *(row[index] for row in self.rows)]
            is_name = index == 0
            # rich (15) breaks words of the widest column first, unless it is given their length.
            # A name is one word: rows can then be found by grep.
            words = cells if is_name else " ".join(cells).split()
            longest = max(map(len, words), default=1)
            justify: JustifyMethod = "left" if is_name else "right"
            table.add_column(name, justify=justify, min_width=longest, no_wrap=is_name)
            narrowest += longest + gap
        for row in self.rows:
            table.add_row(*row)
        # Names of runs may hold brackets and colons, which are no markup and no emoji.
        console = Console(
            file=StringIO(), width=UNLIMITED, markup=False, emoji=False, highlight=False
        )
        with console.capture() as captured:
            # Never narrower than the longest words: rich would cut them.
            console.print(table, width=max(width - len(indent), narrowest))
        # Blanks at the ends would fill the lines of a file.
        lines = [f"{indent}{line}".rstrip() for line in captured.get().splitlines()]
        return "\n".join([self.title, *lines])


def tables(comparison: Comparison) -> list[Table]:
    """Those that have a column besides the names."""
    every_table = [
        _set_up(comparison),
        _outcome(comparison),
        _time(comparison),
        _time_shares(comparison),
        _memory(comparison),
        _keys(comparison),
    ]
    # A table of names alone says nothing.
    return [table for table in every_table if len(table.header) > 1 and table.rows]


def _by_set_up(comparison: Comparison, title: str, columns: Mapping[str, Cell]) -> Table:
    """A row for each set-up. A column that no set-up measured is absent."""
    header = [SET_UP]
    rows = [[label] for label in comparison.labels]
    for name, cell in columns.items():
        cells = [cell(index) for index in comparison.indices]
        # A column without figures only makes the others narrower.
        if set(cells) != {UNKNOWN}:
            header.append(name)
            for row, text in zip(rows, cells, strict=True):
                row.append(text)
    return Table(title, tuple(header), tuple(map(tuple, rows)))


def _set_up(comparison: Comparison) -> Table:
    groups = comparison.groups

    def derived(key: str, index: int) -> str:
        first = groups[index].first
        return format_value(
            # precision stands in the identity, all else in the derived block.
            {"precision": first.identity.get("precision"), **first.derived}.get(key)
        )

    def verified(index: int) -> str:
        # Set-ups with several runs give each its own step.
        steps = filter(None, (run.verified_at for run in groups[index].runs))
        return ", ".join(steps) or UNKNOWN

    columns: dict[str, Cell] = {
        "runs": lambda index: str(len(groups[index].runs)),
        "seeds": lambda index: ", ".join(map(str, groups[index].seeds)),
    }
    for key, name in DERIVED.items():
        columns[name] = partial(derived, key)
    columns["verified at step"] = verified
    return _by_set_up(comparison, "Set-up", columns)


def _outcome(comparison: Comparison) -> Table:
    outcomes = comparison.outcomes
    metrics = union(outcome.metrics for outcome in outcomes)
    losses = union(outcome.distances for outcome in outcomes)

    def num_runs(index: int) -> int:
        return len(comparison.groups[index].runs)

    def metric_cell(metric: str, index: int) -> str:
        return format_spread(outcomes[index].metrics.get(metric), num_runs(index))

    def distance_cell(metric: str, index: int) -> str:
        distance = outcomes[index].distances.get(metric)
        if distance is None:
            return UNKNOWN
        # The number of rows beside it: a distance over two rows says little.
        return f"{distance.largest:.2g} ({counted(distance.rows, 'row')})"

    def noise_scale(index: int) -> str:
        outcome = outcomes[index]
        return format_estimate(outcome.noise_scale, outcome.noise_scale_range, num_runs(index))

    def break_even(index: int) -> str:
        outcome = outcomes[index]
        return format_estimate(outcome.break_even, outcome.break_even_range, num_runs(index))

    columns: dict[str, Cell] = {
        "samples": lambda index: format_value(outcomes[index].samples),
        "steps": lambda index: format_number(outcomes[index].steps),
    }
    for metric in metrics:
        columns[metric] = partial(metric_cell, metric)
    for metric in losses:
        columns[f"max |{metric} - first|"] = partial(distance_cell, metric)
    columns["noise scale"] = noise_scale
    columns["fastest micro-steps"] = break_even
    # Only where all set-ups have the same samples is the outcome of equal training.
    is_equal = bool(metrics) and len({outcome.samples for outcome in outcomes}) == 1
    where = "at equal samples seen" if is_equal else "at the end of each"
    return _by_set_up(comparison, f"Outcome {where}", columns)


def _time(comparison: Comparison) -> Table:
    target = comparison.target

    def cost(number: Callable[[Cost], float | None], scale: float = 1.0) -> Cell:
        return lambda index: format_spread(
            comparison.cost(index, number), len(comparison.groups[index].runs), scale
        )

    def hours_to_target(index: int) -> str:
        if target is None:
            return UNKNOWN
        text = format_hours(target.hours[index])
        num_runs = len(comparison.groups[index].runs)
        if target.reached[index] < num_runs:
            text += f" ({target.reached[index]} of {num_runs})"
        return text

    columns: dict[str, Cell] = {
        "samples/s": cost(lambda cost: cost.samples_per_second),
        "step p50 (ms)": cost(lambda cost: cost.step_p50_seconds, 1000),
        "step p95 (ms)": cost(lambda cost: cost.step_p95_seconds, 1000),
        "MFU (%)": cost(lambda cost: cost.mfu, 100),
        "no processor (%)": cost(lambda cost: cost.cpu_wait, 100),
        "training time": lambda index: format_hours(
            comparison.cost(index, lambda cost: cost.hours)
        ),
    }
    if target:
        columns[f"to {target.metric} <= {target.loss:.4g}"] = hours_to_target
    return _by_set_up(comparison, "Cost in time", columns)


def _time_shares(comparison: Comparison) -> Table:
    def share(phase: str, index: int) -> str:
        # Of the phases that were measured: the shares are of their sum.
        spread = comparison.cost(index, lambda cost: cost.shares.get(phase))
        return f"{100 * spread.mean:.0f} %" if spread else UNKNOWN

    columns = {phase: partial(share, phase) for phase in PHASES.values()}
    return _by_set_up(comparison, "Share of a step's time", columns)


def _memory(comparison: Comparison) -> Table:
    """Every memory metric that there is."""

    def peak(metric: str, index: int) -> str:
        return format_memory(comparison.peak(index, metric), len(comparison.groups[index].runs))

    columns: dict[str, Cell] = {}
    for metric in union(cost.peaks_gib for cost in comparison.all_costs):
        name = metric.removeprefix("memory/").removesuffix("_gib").replace("_", " ")
        columns[KINDS.get(metric) or name] = partial(peak, metric)
    return _by_set_up(comparison, "Memory: the largest value of a run", columns)


def _keys(comparison: Comparison) -> Table:
    rows = []
    for key in comparison.keys:
        rows.append((key.name, key.kind, *map(_shortened, key.values)))
    return Table("Keys that differ", ("key", "changes the", *comparison.labels), tuple(rows))


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[: LONGEST_VALUE - 3]}..."
