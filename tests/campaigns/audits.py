"""What start and audits find over the zoo: python -m tests.campaigns.audits [TABLE ...]

Each model is trained as a user would, in float32: 101 steps of 16 samples in four micro-batches,
audits at their default steps (`zoo`). Then what an audit costs in the language model (`cost`), what
is said of injected faults (`faults`), whether a run with audits ends at the bits of one without
(`bits`), and what is reported of exact models over many steps (`alarms`). All of them take about
fifteen minutes of one core.
"""

import contextlib
import hashlib
import io
import json
import socket
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.conftest import run_ranks
from tests.exactness.audited import audits, other_rows, trained, trained_armed, trained_sharded
from tests.exactness.zoo.animals import Animal, data, true_error
from tests.exactness.zoo.keeper import ZOO
from tests.exactness.zoo.late import LATE, OPENS
from tests.helpers import argv, record, rows
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
ANIMALS: dict[str, Animal] = {animal.name: animal for animal in ZOO} | {
    late(0).name: late(OPENS) for late in LATE
}
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
    said = [line for line in log(folder) if line.startswith("warning   step")]
    found_by = rows(folder, names.SPLIT_ERROR)
    failed = [row for row in found_by if not row[names.VERIFIED]]
    if said:
        return said[0].split(":")[0].removeprefix("warning   "), said[0].partition(": ")[2]
    if failed:
        return "rounding", ", ".join(
            f"{row[names.SPLIT_ERROR]:.0e} at step {row[names.GLOBAL_STEP]}" for row in failed
        )
    not_audited = [line for line in log(folder) if "could not be" in line]
    if not_audited:
        return "declared", not_audited[0].partition(": ")[2]
    if derived["exact"] == "declared":
        return "declared", derived["exact_reasons"]
    return "", f"{max(row[names.SPLIT_ERROR] for row in found_by):.0e} at most"


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
            lines.append(
                f"| {name} | {kind} | {error:.0e} | {who or 'nobody'} | {said.replace('|', '/')} |"
            )
        print(name, kind, who, said[:200], file=sys.stderr, flush=True)
    columns = ("start", "an audit", "declared", "rounding", "nobody")
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for kind in dict.fromkeys(kind for kind, _ in count):
        print(f"| {kind} | {' | '.join(str(count[kind, column]) for column in columns)} |")
    print("\n| model or task | is | true error | found by | what is said |\n|---|---|---|---|---|")
    print(*lines, sep="\n")


def cost() -> None:
    """Of the language model of configs/lm.yaml, whole and in micro-batches."""
    print("| run | step | audit | of a run of 1,000 steps (4 audits) |\n|---|---|---|---|")
    for micro in (16, 4):
        with tempfile.TemporaryDirectory() as folder:
            given = [
                "configs/lm.yaml",
                f"output_dir={folder}",
                "name=run",
                "duration={steps: 101}",
                "wandb.mode=disabled",
            ]
            given += ["evaluate.every_tokens=10000000", f"batch.micro={micro}"]
            with contextlib.redirect_stdout(io.StringIO()):
                record(given)
            steps = [row[names.STEP_SECONDS] for row in rows(Path(folder), names.STEP_SECONDS)]
            audits = [row[names.AUDIT_SECONDS] for row in rows(Path(folder), names.AUDIT_SECONDS)]
        step, audit = statistics.median(steps), statistics.mean(audits)
        share = 4 * audit / (1000 * step)
        print(
            f"| lm, micro-batches of {micro} | {step:.3f} s | {audit:.3f} s | {share:.2%} |",
            flush=True,
        )


FLIPPED = (
    "model={{target: tests.exactness.audited.Flipping, args: {{wrong: 1, bit: 29, times: "
    "{times}}}}}"
)
TINY = (
    "precision=fp32",
    "data.args.size=32",
    "batch.micro=2",
    "batch.audit_every_steps=2",
    "duration={steps: 1}",
)
FAULTS = {
    "one bit, in each backward pass of rank 1": (2, FLIPPED.format(times=10**9)),
    "the same, three ranks": (3, FLIPPED.format(times=10**9)),
    "one bit, once, on rank 1": (3, FLIPPED.format(times=1)),
    "a kernel that is wrong for three samples": (
        1,
        "model={target: tests.exactness.audited.WithKernel}",
    ),
}


def faults() -> None:
    print("| fault | ranks | what is said |\n|---|---|---|")
    for name, (ranks, model) in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            given = argv(Path(folder), model, *TINY, *(["batch.micro=4"] if ranks == 1 else []))
            run_ranks(ranks, trained_armed, given)
            (said,) = [line for line in log(Path(folder)) if line.startswith("warning   step 1:")]
        print(
            f"| {name} | {ranks} | "
            f"{said.removeprefix('warning   ').replace(socket.gethostname(), 'HOST')} |",
            flush=True,
        )


def log(folder: Path) -> list[str]:
    return (folder / "run" / "log.txt").read_text().splitlines()


ADAMW = "optimizer={target: adamw, lr: 0.01}"
BITS: dict[str, tuple[str, ...]] = {
    "float64, SGD": (),
    "float32, AdamW": ("precision=fp32", ADAMW),
    "explicit reduction": ("precision=fp32", "runtime.reduction=explicit", ADAMW),
    "bf16 parameters": ("precision=bf16", "model.dtype=bf16", ADAMW),
    "buffers and a queue that change": (
        "model={target: tests.exactness.audited.Gated, args: {kind: queued}}",
    ),
    "dropout (not audited)": (
        "model={target: tests.exactness.audited.Gated, args: {kind: dropped, opens: -1}}",
    ),
    "a stream": ("data={source: tests.helpers.stream, streaming: true}",),
    "FSDP2": ("precision=fp32", ADAMW),
}


def bits() -> None:
    """Weights, optimizer state and checkpoints of nine steps, and all that rows say of the
    training.
    """
    print("| case | ranks | audits | files compared | the same |\n|---|---|---|---|---|")
    for name, given in BITS.items():
        for ranks in (1, 2, 3):
            if name == "FSDP2" and ranks == 1:
                continue
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                both = []
                for audited in ("without", "with"):
                    own = [
                        *given,
                        f"name={audited}",
                        f"batch.audit_every_steps={3 * (audited == 'with')}",
                    ]
                    plain = (
                        "batch.micro=2",
                        "duration={steps: 9}",
                        "checkpoint.every_steps=3",
                        "checkpoint.keep=9",
                    )
                    run_ranks(
                        ranks,
                        trained_sharded if name == "FSDP2" else trained,
                        argv(folder, *plain, *own),
                    )
                    both.append((digests(folder / audited), other_rows(folder, audited)))
                count = len(audits(folder, "with"))
            same = "yes" if both[0] == both[1] else "NO"
            print(f"| {name} | {ranks} | {count} | {len(both[0][0])} | {same} |", flush=True)


def digests(folder: Path) -> dict[str, str]:
    """Of what checkpoints and the end of a run hold in tensors."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class SmallConvNet(torch.nn.Module):
    """(samples, 64) -> (samples, 10). ReLU and max-pooling: units that may stand at a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 16, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(64, 10),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(inputs.reshape(-1, 1, 8, 8))
        return logits


SEEDS = 12
ALARM_MODELS = {
    "mlp of configs/digits.yaml": (),
    "two convolutions": ("model={target: tests.campaigns.audits.SmallConvNet, args: {}}",),
}


def alarms() -> None:
    """Exact models, every step audited: what is reported of them."""
    print(
        "| model, float32 | audits | verified | rounding | fault or inexact | largest difference |"
    )
    print("|---|---|---|---|---|---|")
    for name, model_of in ALARM_MODELS.items():
        kinds: Counter[str] = Counter()
        largest = 0.0
        for seed in range(SEEDS):
            for micro in (1, 2, 5):
                found, output = _audited_each_step(model_of, seed, micro)
                errors = [row[names.SPLIT_ERROR] for row in found.values()]
                largest = max([largest, *errors])
                kinds["audits"] += len(found)
                kinds["verified"] += sum(int(row[names.VERIFIED]) for row in found.values())
                kinds["rounding"] += output.count("differs by rounding alone")
                kinds["failed"] += output.count("was computed wrong")
                kinds["failed"] += output.count("depends on how the batch is cut")
        print(
            f"| {name} | {kinds['audits']:,} | {kinds['verified']:,} | {kinds['rounding']} "
            f"| {kinds['failed']} | {largest:.1e} |",
            flush=True,
        )


def _audited_each_step(
    model_of: tuple[str, ...], seed: int, micro: int
) -> tuple[dict[int, dict[str, Any]], str]:
    """40 steps of 16 samples: ({step: its audit}, stdout)."""
    output = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        given = ["configs/digits.yaml", f"output_dir={folder}", "name=run", f"seed={seed}"]
        given += [*model_of, "batch.effective=16", f"batch.micro={micro}", "duration={steps: 40}"]
        given += ["batch.audit_every_steps=1", "wandb.mode=disabled"]
        given += ["evaluate.every_steps=1000000", "log.every_steps=1000"]
        with contextlib.redirect_stdout(output):
            record(given)
        return audits(Path(folder)), output.getvalue()


TABLES = {"zoo": zoo, "cost": cost, "faults": faults, "bits": bits, "alarms": alarms}


def main() -> None:
    for name in sys.argv[1:] or TABLES:
        TABLES[name]()
        print()


if __name__ == "__main__":
    main()
