"""What start and audits find over the zoo: python -m tests.campaigns.audits > TABLE.md (five minutes, one core).

Each model is trained as a user would, in float32: 101 steps of 16 samples in four micro-batches, audits at their
default steps. `zoo`: that table alone; `cost`: what an audit costs, alone.
"""

import contextlib
import io
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.exactness.zoo.animals import Animal, data, true_error
from tests.exactness.zoo.keeper import ZOO
from tests.exactness.zoo.late import LATE, OPENS
from tests.helpers import record, rows
from train import metric_names as names

CONFIG = """
name: run
batch: {effective: 16, micro: 4, exact: ignore}
data: {source: tests.campaigns.audits.samples}
optimizer: {target: sgd, lr: 0.02, max_grad_norm: 1.0}
duration: {steps: 101}
log: {every_steps: 50}
wandb: {mode: disabled}
checkpoint: {resume: never}
"""
ANIMALS: dict[str, Animal] = {animal.name: animal for animal in ZOO} | {late(0).name: late(OPENS) for late in LATE}
OPENED: dict[str, Animal] = {late(0).name: late(0) for late in LATE}
"""As they are once they have opened: of which the true error is."""


def samples() -> Dataset:
    columns = data(160)
    del columns["sample_id"]
    return Dataset.from_dict({name: column.numpy() for name, column in columns.items()})


def model(name: str) -> torch.nn.Module:
    return ANIMALS[name].model()


class Of:
    """The task of an animal."""

    columns = tuple(name for name in data() if name != "sample_id")

    def __init__(self, name: str) -> None:
        self._task = ANIMALS[name].task()
        self.coefficients = getattr(self._task, "coefficients", {})

    def loss_weight(self, batch: Any) -> Any:
        return self._task.loss_weight(batch)

    def loss_sum(self, model: Any, batch: Any) -> Any:
        return self._task.loss_sum(model, batch)

    def eval_sums(self, model: Any, batch: Any) -> Any:
        return {"loss": (self.loss_sum(model, batch), self.loss_weight(batch))}


def found(name: str, folder: Path) -> tuple[str, str]:
    """(who has found it, what was said): `start`, `step N`, `declared`, or nobody."""
    (folder / "zoo.yaml").write_text(CONFIG)
    given = [str(folder / "zoo.yaml"), f"output_dir={folder}"]
    args = json.dumps({"name": name})
    given += [f"model={{target: tests.campaigns.audits.model, args: {args}}}"]
    given += [f"task={{target: tests.campaigns.audits.Of, args: {args}}}"]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        record(given)
    derived = json.loads((folder / "run" / "plan.json").read_text())["derived"]
    if derived["exact"] == "false":
        return "start", derived["exact_reasons"]
    said = [line for line in (folder / "run" / "log.txt").read_text().splitlines() if line.startswith("warning   step")]
    audits = rows(folder, names.SPLIT_ERROR)
    failed = [row for row in audits if not row[names.VERIFIED]]
    if said:
        return said[0].split(":")[0].removeprefix("warning   "), said[0].partition(": ")[2]
    if failed:
        return "rounding", ", ".join(f"{row[names.SPLIT_ERROR]:.0e} at step {row[names.GLOBAL_STEP]}" for row in failed)
    not_audited = [line for line in (folder / "run" / "log.txt").read_text().splitlines() if "could not be" in line]
    if not_audited:
        return "declared", not_audited[0].partition(": ")[2]
    if derived["exact"] == "declared":
        return "declared", derived["exact_reasons"]
    return "", f"{max(row[names.SPLIT_ERROR] for row in audits):.0e} at most"


def zoo() -> None:
    torch.set_num_threads(1)
    count, lines = Counter[tuple[str, str]](), []
    for name, animal in ANIMALS.items():
        with tempfile.TemporaryDirectory() as folder:
            who, said = found(name, Path(folder))
        kind = ("exact" if animal.exact else "inexact") + (", late" if name in OPENED else "")
        column = "an audit" if who.startswith("step") else who or "nobody"
        count[kind, column] += 1
        if name in OPENED or who not in ("start", ""):
            error = true_error(OPENED.get(name, animal), 10)
            lines.append(f"| {name} | {kind} | {error:.0e} | {who or 'nobody'} | {said.replace('|', '/')} |")
        print(name, kind, who, said[:200], file=sys.stderr, flush=True)
    columns = ("start", "an audit", "declared", "rounding", "nobody")
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for kind in dict.fromkeys(kind for kind, _ in count):
        print(f"| {kind} | {' | '.join(str(count[kind, column]) for column in columns)} |")
    print("\n| model or task | is | true error | found by | what is said |\n|---|---|---|---|---|")
    print(*lines, sep="\n")


if __name__ == "__main__":
    zoo()
