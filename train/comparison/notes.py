"""What a reader must know besides the figures. Pure."""

from collections.abc import Sequence

from train.comparison.cost import ACTIVATIONS, FEWEST_FOR_P95, Cost, memory_of
from train.comparison.figures import size
from train.comparison.group import Group, shared_seeds
from train.comparison.keys import machines
from train.comparison.outcome import Target, equal_samples
from train.comparison.paying import sentence
from train.comparison.read import LeftOut
from train.comparison.run import Run


def notes(
    groups: Sequence[Group],
    costs: Sequence[Sequence[Cost]],
    left_out: Sequence[LeftOut],
    target: Target | None,
) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    flat = [cost for of_group in costs for cost in of_group]
    return [
        *(f"left out: {each.where}: {each.why}" for each in left_out),
        *_about_runs(runs),
        *_about_seeds(groups),
        *_about_rows(groups, runs),
        *_about_load(flat, runs),
        *_about_costs(flat, runs),
        *_about_target(target),
        *_about_accumulation(groups),
    ]


def _about_runs(runs: Sequence[Run]) -> list[str]:
    told = [f"{run.name}: {remark}" for run in runs for remark in run.remarks]
    for run in runs:
        if run.ended != "finished":
            told.append(
                f"{run.name} {run.ended or 'has not ended, or was killed'}: compared as far as it "
                "got"
            )
        if not len(run.train_rows):
            told.append(
                f"{run.name} has no row of training: no step was due for one (log.every_steps) "
                "before it ended"
            )
        if run.changes:
            told.append(f"{run.name} went on with other mathematics {'; '.join(run.changes)}")
        if run.is_exact is False:
            told.append(
                f"{run.name} is not exact: "
                f"{run.derived.get('exact_reasons') or 'no reason recorded'}"
            )
    dirty = [run.name for run in runs if (run.environment.get("git") or {}).get("dirty")]
    if dirty:
        told.append(
            f"uncommitted changes in the code of {_listed(dirty)}; git.patch in the run folder "
            "holds them"
        )
    return told


def _about_seeds(groups: Sequence[Group]) -> list[str]:
    again = [group.label for group in groups if len(group.seeds) < len(group.runs)]
    told = [f"{label} holds several runs of one seed; spreads are over its runs" for label in again]
    if not shared_seeds(groups):
        told.append(
            "no seed is in all set-ups: each figure is of the set-up's own seeds, luck included"
        )
    return told


def _about_rows(groups: Sequence[Group], runs: Sequence[Run]) -> list[str]:
    told = []
    intervals = {run.execution.get("log.every_steps") for run in runs} - {None}
    if len(intervals) > 1:
        told.append(
            "rows come at other intervals (log.every_steps): curves are compared where samples "
            "seen agree"
        )
    if len(groups) > 1 and equal_samples(groups) is None:
        told.append(
            "there are no samples seen at which all runs have a loss: each outcome is of the "
            "set-up's own end"
        )
    return told


def _about_load(costs: Sequence[Cost], runs: Sequence[Run]) -> list[str]:
    told = []
    for run, cost in zip(runs, costs, strict=True):
        if cost.was_disturbed and cost.cpu_wait is not None:
            told.append(
                f"{run.name} waited for a processor {100 * cost.cpu_wait:.0f} % of its time"
            )
    if not told:
        return []
    why = (
        "beside other programs, or more ranks and threads than processors: throughput and times "
        "of these runs are low"
    )
    return [f"timed under other load: {_listed(told)} ({why})"]


def _about_costs(costs: Sequence[Cost], runs: Sequence[Run]) -> list[str]:
    told = []
    places = machines(runs)
    if len(places) > 1:
        told.append(f"times and throughput are of different machines: {_listed(places)}")
    kinds = {cost.memory_kind for cost in costs}
    if len(kinds) > 1:
        named = _listed(sorted(str(kind) for kind in kinds - {None}))
        told.append(
            f"memory is not of one kind ({named}{'; unknown for some' if None in kinds else ''}): "
            "not compared"
        )
    memory = memory_of(costs)
    if memory and memory.name == ACTIVATIONS:
        told.append(
            "activations are the bytes that autograd saves for the backward pass, the most at once "
            "on any rank; the memory of the process is mostly that of Python and torch"
        )
    if memory and memory.is_process:
        noise = max(cost.noise_gib for cost in costs)
        told.append(
            f"the memory of a process varies from row to row by up to {size(noise)}: less is no "
            "difference"
        )
    if any(cost.step_p50_seconds is not None for cost in costs):
        told.append(
            "a step's time is the mean over the steps of a row, p50 and p95 are over rows, the "
            "first left out"
            + (
                f"; p95 needs {FEWEST_FOR_P95} rows"
                if any(cost.step_p95_seconds is None for cost in costs)
                else ""
            )
        )
    if any(cost.phase_seconds for cost in costs):
        told.append(
            "time shares are of the full steps that got a row, and of the phases measured: the "
            "ragged last steps of epochs, which fall on rows more often or less than their share, "
            "are left out"
        )
    return told


def _about_target(target: Target | None) -> list[str]:
    if target is None:
        return []
    origin = "was given" if target.was_given else "is the lowest that every run reached"
    return [
        f"the target, {target.metric} {target.loss:.4g}, {origin}; hours are of training, "
        "evaluation not counted"
    ]


def _about_accumulation(groups: Sequence[Group]) -> list[str]:
    told = list(filter(None, map(sentence, groups)))
    if told:
        told.append(
            "noise scale and fastest micro-steps are what the runs estimated, the mean over runs; "
            "in brackets two standard errors to both sides, from the least to the largest over runs"
        )
    return told


def _listed(values: Sequence[str]) -> str:
    shown = "; ".join(values[:4])
    return f"{shown} and {len(values) - 4} more" if len(values) > 4 else shown
