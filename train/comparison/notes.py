"""What a reader must know besides the figures. Pure."""

from collections.abc import Sequence

from train.comparison.accumulation import accumulation_sentence
from train.comparison.comparison import Comparison
from train.comparison.cost import ACTIVATIONS, FEWEST_FOR_P95, Cost, memory_of
from train.comparison.formatting import format_gib
from train.comparison.group import Group, shared_seeds
from train.comparison.keys import machines
from train.comparison.outcome import Target, equal_samples
from train.comparison.run import Run

MOST_LISTED = 4


def notes(comparison: Comparison) -> list[str]:
    runs = comparison.runs
    costs = comparison.all_costs
    # What is missing comes first: it may explain the rest.
    lines = [f"skipped: {each.where}: {each.why}" for each in comparison.skipped]
    for run in runs:
        lines += [f"{run.name}: {remark}" for remark in run.remarks]
    for run in runs:
        lines += _about_run(run)
    lines += _about_code(runs)
    lines += _about_seeds(comparison.groups)
    lines += _about_rows(comparison.groups, runs)
    lines += _about_load(costs, runs)
    lines += _about_machines(runs)
    lines += _about_memory(costs)
    lines += _about_times(costs)
    lines += _about_target(comparison.target)
    lines += _about_accumulation(comparison.groups)
    return lines


def _about_run(run: Run) -> list[str]:
    lines = []
    if run.ended != "finished":
        state = run.ended or "has not ended, or was killed"
        lines.append(f"{run.name} {state}: compared as far as it got")
    if not len(run.train_rows):
        lines.append(
            f"{run.name} has no row of training: no step was due for one (log.every_steps) "
            "before it ended"
        )
    if run.changes:
        lines.append(f"{run.name} resumed with other mathematics {'; '.join(run.changes)}")
    if run.is_exact is False:
        reasons = run.derived.get("exact_reasons") or "no reason recorded"
        lines.append(f"{run.name} is not exact: {reasons}")
    return lines


def _about_code(runs: Sequence[Run]) -> list[str]:
    dirty = [run.name for run in runs if (run.environment.get("git") or {}).get("dirty")]
    if not dirty:
        return []
    return [
        f"uncommitted changes in the code of {_listed(dirty)}; git.patch in the run folder "
        "holds them"
    ]


def _about_seeds(groups: Sequence[Group]) -> list[str]:
    lines = []
    for group in groups:
        # Two runs of one seed repeat each other: their spread is no spread over seeds.
        if len(group.seeds) < len(group.runs):
            lines.append(f"{group.label} holds several runs of one seed; spreads are over its runs")
    if not shared_seeds(groups):
        lines.append(
            "no seed is in all set-ups: each figure is of the set-up's own seeds, luck included"
        )
    return lines


def _about_rows(groups: Sequence[Group], runs: Sequence[Run]) -> list[str]:
    lines = []
    # None: a run whose config could not be read.
    intervals = {run.execution.get("log.every_steps") for run in runs} - {None}
    if len(intervals) > 1:
        lines.append(
            "rows come at other intervals (log.every_steps): curves are compared where samples "
            "seen agree"
        )
    if len(groups) > 1 and equal_samples(groups) is None:
        lines.append(
            "there are no samples seen at which all runs have a loss: each outcome is of the "
            "set-up's own end"
        )
    return lines


def _about_load(costs: Sequence[Cost], runs: Sequence[Run]) -> list[str]:
    waits = []
    for run, cost in zip(runs, costs, strict=True):
        # was_disturbed implies it: asked once more for the type alone.
        if cost.was_disturbed and cost.cpu_wait is not None:
            percent = 100 * cost.cpu_wait
            waits.append(f"{run.name} waited for a processor {percent:.0f} % of its time")
    if not waits:
        return []
    why = (
        "beside other programs, or more ranks and threads than processors: throughput and times "
        "of these runs are low"
    )
    return [f"timed under other load: {_listed(waits)} ({why})"]


def _about_machines(runs: Sequence[Run]) -> list[str]:
    names = machines(runs)
    if not names:
        return []
    return [f"times and throughput are of different machines: {_listed(names)}"]


def _about_memory(costs: Sequence[Cost]) -> list[str]:
    lines = []
    kinds = {cost.memory_kind for cost in costs}
    if len(kinds) > 1:
        names = _listed(sorted(kind for kind in kinds if kind))
        unknown = "; unknown for some" if None in kinds else ""
        lines.append(f"memory is not of one kind ({names}{unknown}): not compared")
    memory = memory_of(costs)
    if memory and memory.name == ACTIVATIONS:
        lines.append(
            "activations are the bytes that autograd saves for the backward pass, the most at once "
            "on any rank; the memory of the process is mostly that of Python and torch"
        )
    if memory and memory.is_process:
        noise = max(cost.noise_gib for cost in costs)
        lines.append(
            "the memory of a process varies from row to row by up to "
            f"{format_gib(noise)}: less is no difference"
        )
    return lines


def _about_times(costs: Sequence[Cost]) -> list[str]:
    lines = []
    if any(cost.step_p50_seconds is not None for cost in costs):
        line = (
            "a step's time is the mean over the steps of a row, p50 and p95 are over rows, the "
            "first skipped"
        )
        if any(cost.step_p95_seconds is None for cost in costs):
            line += f"; p95 needs {FEWEST_FOR_P95} rows"
        lines.append(line)
    if any(cost.phase_seconds for cost in costs):
        lines.append(
            "time shares are of the full steps that got a row, and of the phases measured: the "
            "ragged last steps of epochs, which fall on rows more often or less than their share, "
            "are skipped"
        )
    return lines


def _about_target(target: Target | None) -> list[str]:
    if target is None:
        return []
    origin = "was given" if target.is_configured else "is the lowest that every run reached"
    return [
        f"the target, {target.metric} {target.loss:.4g}, {origin}; hours are of training, "
        "evaluation not counted"
    ]


def _about_accumulation(groups: Sequence[Group]) -> list[str]:
    lines = list(filter(None, map(accumulation_sentence, groups)))
    if lines:
        lines.append(
            "noise scale and fastest micro-steps are what the runs estimated, the mean over runs; "
            "in brackets two standard errors to both sides, from the least to the largest over runs"
        )
    return lines


def _listed(values: Sequence[str]) -> str:
    """Not `errors.some`: the values hold commas."""
    shown = "; ".join(values[:MOST_LISTED])
    if len(values) > MOST_LISTED:
        shown += f" and {len(values) - MOST_LISTED} more"
    return shown
