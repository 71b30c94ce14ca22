"""One rank of one cell of the benchmark: all loops in one process, a block of steps each, in turns.

python -m tests.campaigns.bench_cell OUT.json MODEL ACCUMULATION_STEPS TURNS DATA CONFIG
"""

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from itertools import islice, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.campaigns.bench_loops import Job, by_hand, lean, ours
from tests.campaigns.bench_work import WORKS, loss_of, read_columns, shipped_model
from train import accumulate, standard
from train.batch.window import Place
from train.config import load
from train.data.protocols import assignments
from train.run import Run, build

FINGERPRINT = 3  # after so many steps the first moments are compared
COUNTED = 4
Steps = Iterator[torch.optim.Optimizer]


class Cell:
    """The loops of a cell, begun from the same weights, on the same samples."""

    def __init__(
        self, stack: ExitStack, name: str, accumulation_steps: int, data: Path, config: Path
    ) -> None:
        self.loops: dict[str, Steps] = {}
        self.modules: dict[str, nn.Module] = {}
        self._stack, self._config, self._folder = stack, config, data.parent
        self._accumulation_steps = accumulation_steps
        own = self._run("ours, accumulate")
        self.learner = own.learner
        start = deepcopy(own.learner.module.state_dict())
        wanted = islice(
            assignments(own.plan.batch, 0, own.ranks.rank, Place(), None), self._steps_of(name)
        )
        steps = [torch.from_numpy(found.ids.copy()).split(list(found.sizes)) for _, found in wanted]
        columns = read_columns(data)
        self.hand = {
            "by hand (a)": lambda job: by_hand(job),
            "by hand, again (A/A)": lambda job: by_hand(job),
            "by hand, synchronising each micro-step (b)": lambda job: by_hand(
                job, synchronises_always=True
            ),
            "lean accelerate (c)": lambda job: lean(job),
            "lean accelerate, norm, clip, check": lambda job: lean(job, checks=True),
        }
        if own.ranks.world_size == 1 or accumulation_steps == 1:
            del self.hand["by hand, synchronising each micro-step (b)"]
        for kind, loop in self.hand.items():
            module = shipped_model(name).to(own.learner.device)
            module.load_state_dict(start)
            job = Job(
                module, loss_of(name), columns, steps, own.learner.device, own.ranks.world_size
            )
            self._add(kind, loop(job), module)
        self._add("ours, accumulate", ours(own, accumulate.compute_gradient), own.learner.module)
        if accumulation_steps == 1:
            self._begin("ours, standard", standard.compute_gradient)
        self._begin("ours, no rows", accumulate.compute_gradient, "log.every_steps=1000000")
        self._begin("ours, W&B offline", accumulate.compute_gradient, "wandb.mode=offline")

    def _steps_of(self, name: str) -> int:
        work = WORKS[name]
        return work.warm_up + COUNTED * 2 + work.steps * work.turns

    def _run(self, kind: str, *overrides: str) -> Run:
        label = "".join(filter(str.isalnum, kind))
        batch = f"batch.accumulation_steps={self._accumulation_steps}"
        argv = [
            str(self._config),
            f"name={label}",
            f"output_dir={self._folder / 'runs'}",
            batch,
            *overrides,
        ]
        run = build(load(argv), "standard" if "standard" in kind else "accumulate")
        self._stack.callback(run.report.close, "measured", 0)
        return run

    def _begin(self, kind: str, compute_gradient: Any, *overrides: str) -> None:
        run = self._run(kind, *overrides)
        self._add(kind, ours(run, compute_gradient), run.learner.module)

    def _add(self, kind: str, loop: Steps, module: nn.Module) -> None:
        self.loops[kind] = loop
        self.modules[kind] = module


def timed(loop: Steps, count: int, cuda: bool) -> dict[str, list[float]]:
    """Seconds of each step: of the processor (all threads of this rank), by the wall clock, of the
    GPU.
    """
    cpu, wall, events = [time.process_time()], [time.perf_counter()], []
    for _ in range(count):
        if cuda:
            events.append(recorded())
        next(loop)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
    found = {"cpu": differences(cpu), "wall": differences(wall)}
    if cuda:
        events.append(recorded())
        torch.cuda.synchronize()
        found["gpu"] = [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]
    return found


def recorded() -> Any:
    event: Any = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def differences(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


class Operators(TorchDispatchMode):
    """Counts what reaches the kernels: operators, numbers that the host reads, and what travels to
    other ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("c10d"):
            sent = [t for t in flat(args) if isinstance(t, Tensor)]
            is_gradient = all(t.is_floating_point() and t.dtype is not torch.float64 for t in sent)
            self.counts["reductions" if is_gradient else "other messages"] += 1
            if is_gradient:
                self.counts["bytes"] += sum(t.nbytes for t in sent)
        else:
            self.counts["operators"] += 1
            # Of a GPU also what is copied to the host; on a CPU a copy is none.
            to_host = "_to_copy" in name and (kwargs or {}).get("device") == torch.device("cpu")
            self.counts["host reads"] += "_local_scalar_dense" in name or (
                to_host and args[0].device.type != "cpu"
            )
        return func(*args, **(kwargs or {}))


def flat(args: Any) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, list | tuple):
            yield from flat(arg)
        else:
            yield arg


def function_calls(loop: Steps) -> int:
    counted = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    next(loop)
    sys.setprofile(None)
    return counted


def counts(loop: Steps) -> dict[str, float]:
    """Of a step without a row, armed for nothing: the least of some."""
    calls = min(function_calls(loop) for _ in range(COUNTED))
    found = []
    for _ in range(COUNTED):
        with Operators() as seen:
            next(loop)
        found.append(seen.counts)
    least = min(found, key=lambda each: each["operators"])
    return {"function calls": calls, **least}


def first_moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    return torch.cat(
        [optimizer.state[p]["exp_avg"].flatten().double() for p in module.parameters()]
    )


def measure(
    name: str, accumulation_steps: int, turns: int, data: Path, config: Path
) -> dict[str, Any]:
    with ExitStack() as stack:
        cell = Cell(stack, name, accumulation_steps, data, config)
        cuda = cell.learner.device.type == "cuda"
        moments = {}
        for kind, loop in cell.loops.items():
            optimizer = None
            for _ in range(FINGERPRINT):
                optimizer = next(loop)
            assert optimizer is not None
            moments[kind] = first_moments(cell.modules[kind], optimizer)
            for _ in range(WORKS[name].warm_up - FINGERPRINT):
                next(loop)
        hand = moments["by hand (a)"]
        apart = {
            kind: float((found - hand).norm() / hand.norm()) for kind, found in moments.items()
        }
        times: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in cell.loops}
        order = list(cell.loops)
        for turn in range(turns):
            gc.collect()
            for kind in order[turn % len(order) :] + order[: turn % len(order)]:
                times[kind].append(timed(cell.loops[kind], WORKS[name].steps, cuda))
        counted = {kind: counts(loop) for kind, loop in cell.loops.items()}
    return {"apart": apart, "times": times, "counts": counted}


def main() -> None:
    out, name, accumulation_steps, turns, data, config = sys.argv[1:]
    torch.set_num_threads(1)
    found = measure(name, int(accumulation_steps), int(turns), Path(data), Path(config))
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
