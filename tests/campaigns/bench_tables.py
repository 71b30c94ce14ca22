"""The benchmark's tables and its picture. All times are paired with those of the hand-written loop,
turn by turn.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HAND, AGAIN = "by hand (a)", "by hand, again (A/A)"
CHECKS = "lean accelerate, norm, clip, check"
OURS, NO_ROWS = "ours, accumulate", "ours, no rows"
SHOWN = ("by hand, synchronising each micro-step (b)", "lean accelerate (c)", CHECKS, OURS)
Turn = dict[str, list[float]]
"""{clock: seconds of each step}"""


@dataclass(frozen=True)
class Paired:
    """Differences to the hand-written loop, or ratios, of one turn after the other."""

    turns: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    def __str__(self) -> str:
        return f"{self.median:.0f} [{min(self.turns):.0f}, {max(self.turns):.0f}]"


@dataclass(frozen=True)
class Cell:
    """A model, on so many ranks, with so many micro-steps in a step."""

    name: str
    ranks: int
    accumulation_steps: int
    found: dict[str, Any]

    @property
    def loops(self) -> list[str]:
        return list(self.found["times"])

    @cached_property
    def clock(self) -> str:
        """Of a step: the GPU's events where there is one, else the processor's time of this rank."""
        return "gpu" if "gpu" in self.found["times"][HAND][0] else "cpu"

    def turns(self, loop: str) -> list[Turn]:
        turns: list[Turn] = self.found["times"][loop]
        return turns

    def over(
        self, loop: str, of_turn: Callable[[Sequence[float]], float], clock: str = ""
    ) -> Paired:
        """Microseconds over the hand-written loop."""
        key = clock or self.clock
        pairs = zip(self.turns(loop), self.turns(HAND), strict=True)
        return Paired([(of_turn(own[key]) - of_turn(hand[key])) * 1e6 for own, hand in pairs])

    def best(self, loop: str) -> Paired:
        return self.over(loop, min)

    def noise(self) -> float:
        """Of the best step: how far the hand-written loop is from itself, at most."""
        return max(map(abs, self.best(AGAIN).turns))

    def mean(self, loop: str) -> float:
        """Seconds of a step, rows and armed steps included."""
        return statistics.mean(second for turn in self.turns(loop) for second in turn[self.clock])

    def wall(self, loop: str) -> str:
        pairs = zip(self.turns(loop), self.turns(HAND), strict=True)
        ratios = [
            statistics.median(own["wall"]) / statistics.median(hand["wall"]) for own, hand in pairs
        ]
        return f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"

    def count(self, loop: str, what: str) -> float:
        return float(self.found["counts"][loop].get(what, 0))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def times_table(name: str, cells: Sequence[Cell]) -> str:
    head = (
        "ranks",
        "accumulation",
        "loop",
        "best step, us over (a)",
        "per micro-step",
        "median step, us over (a)",
    )
    head = (*head, "mean step, us over (a)", "wall time, of (a)", "same work")
    rows: list[list[object]] = []
    for cell in (c for c in cells if c.name == name):
        for loop in cell.loops:
            over, best = cell.best(loop), min(min(turn[cell.clock]) for turn in cell.turns(loop))
            is_hand = loop == HAND
            rows.append(
                [
                    cell.ranks,
                    cell.accumulation_steps,
                    loop,
                    f"({best * 1e6:,.0f} us)" if is_hand else over,
                    "" if is_hand else f"{over.median / cell.accumulation_steps:.0f}",
                    "" if is_hand else cell.over(loop, statistics.median),
                    "" if is_hand else f"{(cell.mean(loop) - cell.mean(HAND)) * 1e6:.0f}",
                    "" if is_hand else cell.wall(loop),
                    f"{cell.found['apart'][loop]:.0e}",
                ]
            )
    kind = (
        "GPU time by events" if cells[0].clock == "gpu" else "CPU time of rank 0, all its threads"
    )
    return f"**{name}** ({kind}; median of the turns [least, most])\n\n{table(head, rows)}"


def counts_table(name: str, cells: Sequence[Cell]) -> str:
    columns = ("reductions", "bytes", "other messages", "host reads", "operators", "function calls")
    rows: list[list[object]] = []
    for cell in (c for c in cells if c.name == name):
        for loop in (HAND, *SHOWN):
            if loop in cell.loops:
                numbers = [f"{cell.count(loop, column):,.0f}" for column in columns]
                rows.append([cell.ranks, cell.accumulation_steps, loop, *numbers])
    return f"**{name}**\n\n{table(('ranks', 'accumulation', 'loop', *columns), rows)}"


Fresh = dict[str, list[dict[str, Any]]]


def start_seconds(process: dict[str, Any]) -> float:
    return float(sum(process["seconds"].values()))


def ratio_to_hand(fresh: Fresh, kind: str, of: Callable[[dict[str, Any]], float]) -> Paired:
    return Paired(
        [of(own) / of(hand) for own, hand in zip(fresh[kind], fresh["hand"], strict=True)]
    )


def fresh_table(name: str, fresh: Fresh) -> str:
    rows = []
    for kind, processes in fresh.items():
        start = ratio_to_hand(fresh, kind, start_seconds)
        seconds = statistics.median(map(start_seconds, processes))
        peak = statistics.median(process["peak_mib"] for process in processes)
        share = peak / statistics.median(process["peak_mib"] for process in fresh["hand"])
        spread = f"{start.median:.2f} [{min(start.turns):.2f}, {max(start.turns):.2f}]"
        rows.append([kind, f"{seconds:.2f}", spread, f"{peak:.0f}", f"{share:.2f}"])
    head = (
        "process",
        "CPU seconds to the end of step 1",
        "of (a)",
        "peak of 25 steps, MiB",
        "of (a)",
    )
    return (
        f"**{name}**, {len(fresh['hand'])} fresh processes of each, one rank\n\n{table(head, rows)}"
    )


def parts_table(fresh: Fresh) -> str:
    """Medians; a part that one kind lacks is empty."""
    parts: dict[str, None] = {}
    for processes in fresh.values():
        parts |= dict.fromkeys(processes[0]["seconds"])
    rows = []
    for part in parts:
        row = []
        for processes in fresh.values():
            found = [
                process["seconds"][part] for process in processes if part in process["seconds"]
            ]
            row.append(f"{statistics.median(found):.3f}" if found else "")
        rows.append([part, *row])
    return table(("CPU seconds of the start, by part", *fresh), rows)


def draw(cells: Sequence[Cell], file: Path) -> None:
    """Best step of the tiny network over the hand-written loop; the band is what A/A does not
    resolve.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tiny = [cell for cell in cells if cell.name == "tiny"]
    of_ranks = sorted({cell.ranks for cell in tiny})
    figure, axes = plt.subplots(1, len(of_ranks), figsize=(9, 3.6), squeeze=False)
    for axis, ranks in zip(axes[0], of_ranks, strict=True):
        own = [cell for cell in tiny if cell.ranks == ranks]
        for number, loop in enumerate(SHOWN[1:]):
            places = [place + (number - 1) * 0.26 for place in range(len(own))]
            axis.bar(places, [cell.best(loop).median for cell in own], 0.24, label=loop)
        for place, cell in enumerate(own):
            axis.fill_between(
                [place - 0.45, place + 0.45], -cell.noise(), cell.noise(), color="0.8", zorder=0
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(own)), [str(cell.accumulation_steps) for cell in own])
        axis.set_xlabel("micro-steps per step")
        axis.set_title(f"{ranks} rank{'s' if ranks > 1 else ''}")
        axis.set_ylabel("us per step over the hand-written loop")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
