"""What accumulation costs and gains: the same effective batch in one micro-batch, and in smaller
and smaller ones.

python -m tests.campaigns.accumulation [FOLDER] [--quick]

Digits and the language model, micro = all, 1/4 and 1/16 of the effective batch (rounded down), 1
and 2 ranks, 3 seeds: 36 runs, of which those that have finished in FOLDER are not run again. They
take turns: each seed goes through all set-ups, so a machine that slows down slows all of them, and
a throughput is compared with that of the same seed. Verdict, tables and pictures of train.compare
go into docs/results/accumulation.md; --quick (a few steps, one seed) writes into FOLDER instead. Times need a
machine that does nothing else.
"""

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tests.campaigns.launched import RESULTS, Launch, commit_of, copy_small, run_all, write_between
from train import metric_names as names
from train.comparison.compare import compare
from train.comparison.comparison import Comparison
from train.comparison.curve_distance import CurveDistance, curve_distance
from train.comparison.group import Group
from train.comparison.html_page import html_page
from train.comparison.pictures import draw
from train.comparison.read import load_runs
from train.comparison.tables import tables
from train.errors import counted

SEEDS, RANKS = (0, 1, 2), (1, 2)


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    config: str
    micros: tuple[int, int]  # 1/4 and 1/16 of the effective batch
    overrides: tuple[str, ...]
    quick: tuple[str, ...]
    told: str  # of the overrides

    def launches(self, seeds: Sequence[int], quick: bool) -> list[Launch]:
        found = []
        for seed in seeds:
            for ranks in RANKS:
                for micro in ("all", *self.micros):
                    loop = "standard" if micro == "all" else "accumulate"
                    set_up = f"{loop if micro == 'all' else f'micro{micro}'}-{ranks}-rank{'s' if ranks > 1 else ''}"
                    more = (
                        f"batch.micro={micro}",
                        f"seed={seed}",
                        *(self.quick if quick else self.overrides),
                    )
                    found.append(Launch(loop, self.config, f"{set_up}-seed{seed}", ranks, more))
        return found


STUDIES = (
    Study(
        "digits",
        "Handwritten digits",
        "configs/digits.yaml",
        (25, 6),
        ("precision=fp64",),
        (
            "precision=fp64",
            "duration={steps: 40}",
            "evaluate.every_steps=10",
            "noise_scale.every_steps=2",
        ),
        "`configs/digits.yaml`, in float64, so that what rounding does to a curve is out of the "
        "way",
    ),
    Study(
        "lm",
        "The language model",
        "configs/lm.yaml",
        (4, 1),
        (
            "duration.tokens=307200",
            "schedule.warmup_tokens=20480",
            "evaluate.every_tokens=61440",
            "noise_scale.every_steps=10",
        ),
        (
            "duration={steps: 12}",
            "schedule.warmup_tokens=4096",
            "log.every_steps=2",
            "noise_scale.every_steps=1",
        ),
        "`configs/lm.yaml`, in float32, at half its length (150 steps)",
    ),
)


@dataclass(frozen=True)
class Beside:
    """A set-up beside the standard loop on as many ranks; a number of each seed."""

    ranks: int
    micro: int
    micro_steps: int
    milliseconds: list[float]  # of a micro-step: its part of the median step
    peaks: list[float]  # MiB
    throughputs: list[float]  # over that of the standard loop
    memory: list[float]  # MiB, less that of the standard loop
    apart: (
        CurveDistance | None
    )  # from the losses of the standard loop; None: it is the standard loop
    break_even: list[float]  # micro-steps per step, as the last rows have it

    @property
    def row(self) -> str:
        cells = (
            *(
                str(self.ranks),
                str(self.micro),
                str(self.micro_steps),
                mean_and_range(self.milliseconds, "{:.3g}"),
            ),
            mean_and_range(self.throughputs, "{:.2f}") if self.apart else "1",
            f"{mean_and_range(self.memory, '{:+.0f}')} MiB" if self.apart else "0",
            f"{self.apart.largest:.1e}" if self.apart else "0",
            mean_and_range(self.break_even, "{:.2g}") if self.break_even else "unknown",
        )
        return f"| {' | '.join(cells)} |"

    def sentence(self, standard: "Beside") -> str:
        assert self.apart
        return (
            f"{counted(self.ranks, 'rank')}, {self.micro_steps} micro-batches of {self.micro} "
            f"instead of one of {standard.micro}: {fmean(self.memory):+.0f} MiB of memory (of "
            f"{fmean(standard.peaks):.0f}), {fmean(self.throughputs):.2f} of the throughput; "
            f"losses differ by at most {self.apart.largest:.1e}."
        )


HEAD = """\
| ranks | micro-batch | micro-steps | ms per micro-step | throughput | peak memory | losses | break-even |
|---|---|---|---|---|---|---|---|
"""


def is_standard(group: Group) -> bool:
    return bool(group.derived("loop") == "standard")


def beside_standard(comparison: Comparison) -> list[Beside]:
    several, groups = [], comparison.groups
    for group, costs in zip(groups, comparison.costs, strict=True):
        told = group.derived
        base = next(
            i
            for i, g in enumerate(groups)
            if is_standard(g) and g.derived("world_size") == told("world_size")
        )
        of_base = dict(zip(groups[base].seeds, comparison.costs[base], strict=True))
        pairs = list(zip(costs, (of_base[seed] for seed in group.seeds), strict=True))
        several.append(
            Beside(
                ranks=told("world_size"),
                micro=told("micro_batch"),
                micro_steps=told("accumulation_steps"),
                milliseconds=[
                    1000 * _known(cost.step_p50_seconds) / told("accumulation_steps")
                    for cost in costs
                ],
                peaks=[1024 * _known(cost.peak_gib) for cost in costs],
                throughputs=[
                    _known(a.samples_per_second) / _known(b.samples_per_second) for a, b in pairs
                ],
                memory=[1024 * (_known(a.peak_gib) - _known(b.peak_gib)) for a, b in pairs],
                apart=None
                if is_standard(group)
                else curve_distance([*groups[base].runs, *group.runs], names.LOSS),
                break_even=[
                    value
                    for run in group.runs
                    for value in list(run.curve(names.BREAK_EVEN).values())[-1:]
                ],
            )
        )
    return several


def reading(rows: Sequence[Beside]) -> list[str]:
    """What the smallest micro-batch gains and costs, on each number of ranks."""
    standards = {row.ranks: row for row in rows if not row.apart}
    least = {row.ranks: row for row in sorted(rows, key=lambda row: row.micro_steps) if row.apart}
    return [f"- {row.sentence(standards[ranks])}" for ranks, row in sorted(least.items())]


def sentences(comparison: Comparison) -> list[str]:
    """How the first run of each accumulating set-up closed, in its own words."""
    found = []
    for group in comparison.groups:
        said = re.search(
            r"^accumulation: .*", (Path(group.first.where) / "log.txt").read_text(), re.MULTILINE
        )
        if said and group.derived("loop") == "accumulate":
            found.append(f"- {group.first.name}: {said[0].removeprefix('accumulation: ')}")
    return found


def report(study: Study, folder: Path, results: Path) -> str:
    """The study's part of the page; its pictures lie beside the page, and a page of its own in the
    folder.
    """
    found = load_runs([str(folder)])
    comparison = compare(found.runs, found.skipped)
    drawn = draw(comparison, folder / "comparison", "samples")
    (folder / "comparison" / "compare.html").write_text(
        html_page(comparison, drawn), encoding="utf-8"
    )
    rows = beside_standard(comparison)
    parts = [
        f"### {study.title}",
        f"{study.told}; {len(comparison.runs)} runs. {comparison.verdict}",
        HEAD + "\n".join(row.row for row in rows),
        "\n".join(reading(rows)),
        "How the accumulating runs of the first seed closed, in their own words:",
        "\n".join(sentences(comparison)),
    ]
    for picture in drawn:
        path = (
            Path("../pictures")
            / f"accumulation-{study.name}-{picture.path.stem.replace('_', '-')}.png"
        )
        copy_small(picture.path, results.parent / path)
        parts.append(f"![{study.title}: {picture.title}]({path})\n\n{picture.caption}")
    notes = [f"  - {note}" for note in comparison.notes]
    text = "\n\n".join([*map(str, tables(comparison)), "\n".join(["Notes", *notes])])
    parts.append(
        "<details><summary>The tables of the "
        f"comparison</summary>\n\n```\n{text}\n```\n\n</details>"
    )
    return "\n\n".join(parts)


INTRODUCTION = """\
## What accumulation costs and gains

`python -m tests.campaigns.accumulation{quick}` ({commit}), set-ups taking turns, seeds {seeds}. The same effective
batch by the standard loop (`batch.micro=all`) and by the accumulation loop, on 1 and 2 ranks of one thread each. In the
tables: the mean over seeds (least to most); throughput as a ratio, memory and losses as a difference to the standard
loop on as many ranks with the same seed. A micro-step's time is its part of the median step, the update included.
Memory is the peak of the process, with what Python and torch take by themselves. All that is logged by default is
logged; a standard run on one rank has a single micro-batch, so it neither measures the noise scale nor pays for it. The
break-even (with more micro-steps a step costs more than it saves in steps) is the runs' own estimate from noise scale
and times, for micro-batches of that size and a rate that is tuned to each batch.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where the runs are kept (default: a temporary folder)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps, one seed; FOLDER/quick/results"
    )
    asked = parser.parse_args()
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="accumulation-"))).resolve()
    quick = " --quick" if asked.quick else ""
    print(
        f"stopped, this goes on: python -m tests.campaigns.accumulation {folder}{quick}", flush=True
    )
    folder /= "quick" if asked.quick else "full"
    results = RESULTS / "accumulation.md"
    seeds = SEEDS
    if asked.quick:
        results = folder / "results" / "accumulation.md"
        seeds = SEEDS[:1]
    run_all(
        [
            (launch, folder / study.name)
            for study in STUDIES
            for launch in study.launches(seeds, asked.quick)
        ]
    )
    first = load_runs([str(folder / STUDIES[0].name)]).runs[0]
    told = {"commit": commit_of(first), "seeds": ", ".join(map(str, seeds)), "quick": quick}
    parts = [INTRODUCTION.format(**told).strip()]
    parts += [report(study, folder / study.name, results) for study in STUDIES]
    write_between(results, "accumulation", "\n\n".join(parts))
    print(
        f"wrote {results}, and "
        f"{' and '.join(f'{study.name}/comparison/compare.html' for study in STUDIES)} in {folder}"
    )


def mean_and_range(values: Sequence[float], form: str) -> str:
    mean = form.format(fmean(values))
    return (
        mean
        if len(values) == 1
        else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
    )


def _known(value: float | None) -> float:
    assert value, "a run did not measure it"
    return value


if __name__ == "__main__":
    main()
