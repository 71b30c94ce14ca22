"""One fresh process of the benchmark: what it costs up to the end of its first step, part by part,
and its peak memory.

python -m tests.campaigns.bench_fresh OUT.json KIND MODEL DATA CONFIG
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("hand", "lean", "ours", "ours, W&B offline")
STEPS = 25  # until the peak is looked at
Mark = Callable[[str], None]


class Marks:
    """Seconds of the processor, by part; the first one began with the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def __call__(self, part: str) -> None:
        now = time.process_time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def peak_mib() -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def run_script(kind: str, name: str, data: Path, out: Path, mark: Mark) -> None:
    """A script of the user's own: (a), or (c)."""
    import torch

    mark("import torch")
    if kind == "lean":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        mark("import accelerate")
    import datasets  # noqa: F401

    mark("import datasets")
    from tests.campaigns.bench_work import WORKS, loss_of, make_model, read_columns

    torch.set_num_threads(1)
    columns = read_columns(data)
    mark("data")
    torch.manual_seed(0)
    model: Any = make_model(name)
    if kind == "lean":
        model = accelerator.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    mark("model and optimizer")
    work, loss = WORKS[name], loss_of(name)
    order = torch.randperm(work.samples)
    for step in range(STEPS):
        ids = order[step * work.effective :][: work.effective]
        inputs, labels = (
            columns["inputs"].index_select(0, ids),
            columns["labels"].index_select(0, ids),
        )
        loss(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == 0:
            mark("first step")


PARTS = {
    "load": "config",
    "connect": "meeting of the ranks",
    "prepare": "data and plan",
    "make_learner": "model and optimizer",
    "preflight": "trial",
    "share_work": "model and optimizer",
    "check_same_model": "trial",
    "open_report": "run folder and report",
}


def train_ours(kind: str, config: Path, out: Path, mark: Mark, marks: Marks) -> None:
    """Does not come back: the process ends behind its last step."""
    import torch

    mark("import torch")
    import datasets  # noqa: F401

    mark("import datasets")
    import train.main
    import train.memory.peaks
    import train.run
    from train.accumulate import compute_gradient

    mark("import the rest")
    torch.set_num_threads(1)

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            mark("other")
            found = function(*args, **kwargs)
            mark(part)
            return found

        return call

    for name, part in PARTS.items():
        module = train.main if name == "load" else train.run
        setattr(module, name, timed(getattr(module, name), part))
    peaks = []
    after_step, reset = train.run.Run.after_step, train.memory.peaks.reset_peak_rss

    def noted() -> bool:  # a row lowers the mark
        peaks.append(peak_mib())
        return reset()

    def watched(self: Any, window: Any, *args: Any) -> None:
        if window.k == 1:
            mark("first step")
        after_step(self, window, *args)
        if window.k == STEPS:
            write(out, marks, max([*peaks, peak_mib()]))
            os._exit(0)

    train.run.Run.after_step = watched  # type: ignore[method-assign]
    train.memory.peaks.reset_peak_rss = noted
    wandb = "offline" if "W&B" in kind else "disabled"
    name = "".join(filter(str.isalnum, kind))
    argv = [
        str(config),
        f"name={name}",
        f"output_dir={out.parent / 'fresh'}",
        f"wandb.mode={wandb}",
    ]
    train.main.main([*argv, "batch.accumulation_steps=1"], "accumulate", compute_gradient)


def write(out: Path, marks: Marks, peak: float) -> None:
    out.write_text(json.dumps({"seconds": marks.seconds, "peak_mib": peak}))


def main() -> None:
    marks = Marks()
    marks("python")
    out, kind, name, data, config = sys.argv[1:]
    if kind.startswith("ours"):
        train_ours(kind, Path(config), Path(out), marks, marks)
    run_script(kind, name, Path(data), Path(out), marks)
    write(Path(out), marks, peak_mib())


if __name__ == "__main__":
    main()
