"""A task, a config and a test to start from, in my/: python -m train.new NAME

What it writes trains, is exact and passes its test as it is; the comments in it say what to
replace. Imports no torch.
"""

import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from train.errors import BAD_CONFIG, FINISHED, UserError, entry_point

FOLDER = Path("my")  # of the current folder, where targets are looked for (train/config/targets.py)
USAGE = (
    "usage: new.py NAME      writes my/NAME.py, my/NAME.yaml and my/test_NAME.py, such as: "
    "new.py hearts"
)

MODULE = '''"""NAME: data and a loss of your own. The config that names them is my/NAME.yaml.

As it stands: a noisy sine, some of whose targets are unknown, and the Huber loss over those that are known.
"""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import huber_loss

Batch = dict[str, Tensor]  # columns by name; dim 0 of each: the samples


def data(size: int = 1000) -> Dataset:
    """Your data: return a datasets.Dataset whose columns hold one array of numbers per sample, all of one shape.

    `data.args` of the config are its arguments. Every rank calls it, and must get the same samples in the same order.
    """
    random = np.random.default_rng(0)
    x = random.uniform(-3, 3, (size, 1)).astype(np.float32)
    y = (np.sin(x[:, 0]) + 0.1 * random.normal(size=size)).astype(np.float32)
    return Dataset.from_dict({"x": x, "y": y, "known": random.random(size) < 0.9})


class Task:
    """What a loss is. It never divides, and knows nothing of micro-batches and ranks: the loop divides."""

    columns = ("inputs", "targets", "known")  # of a batch; `data.columns` of the config says where each comes from
    weight_columns = ("known",)  # those that loss_weight reads

    def __init__(self, delta: float = 1.0) -> None:  # `task.args` of the config
        self.delta = delta

    def loss_weight(self, batch: Batch) -> float:
        """What the sum of the losses is divided by: here the targets that count. All samples: len(batch["targets"])."""
        return float(batch["known"].sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        """The sum of the losses, never their mean: 0-dim, float32 or wider."""
        return self._huber(self._errors(model, batch))

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """{metric: (sum, weight)}: over a whole set, eval/METRIC is the one divided by the other. `loss` is needed."""
        errors, weight = self._errors(model, batch), self.loss_weight(batch)
        return {"loss": (self._huber(errors), weight), "mae": (errors.abs().sum(), weight)}

    def _errors(self, model: Any, batch: Batch) -> Tensor:
        """Call `model(...)` itself, nothing inside it: that is what makes the ranks reduce their gradients."""
        outputs = model(batch["inputs"]).squeeze(1)
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # sums in 16 bits would lose samples
        return torch.where(batch["known"], wide - batch["targets"], 0.0)

    def _huber(self, errors: Tensor) -> Tensor:
        return huber_loss(errors, torch.zeros_like(errors), reduction="sum", delta=self.delta)
'''

CONFIG = """\
# NAME: say here what is trained.
# Command:   ./launch.sh my/NAME.yaml          (on one process: python -m train.accumulate my/NAME.yaml)
# Exact?     python scripts/verify.py my/NAME.yaml
# Test:      python -m pytest my/test_NAME.py
# All keys:  ./launch.sh my/NAME.yaml --print-config
batch:
  effective: 64      # samples per optimizer step, over all ranks
  micro: 16          # samples that one rank puts through the model at once; smaller needs less memory
data:
  source: NAME.data  # the function `data` of my/NAME.py
  args: {size: 1000}
  eval_fraction: 0.2 # held out; the same samples for every seed
  columns: {inputs: x, targets: y}       # {name in the task: name in the data}; `known` has the same name in both
model:
  target: mlp        # or your own, a class or function in my/NAME.py: NAME.Model
  args: {inputs: 1, hidden: [64, 64], outputs: 1}
task:
  target: NAME.Task
  args: {delta: 1.0}
optimizer: {target: adamw, lr: 1e-2, max_grad_norm: 1.0}
schedule: {name: cosine, warmup_fraction: 0.1}
duration: {epochs: 10}
evaluate: {every_steps: 20, best: eval/loss}
"""

TEST = '''"""NAME learns, and its gradient does not depend on how a step is split."""

import json
from pathlib import Path

from train.accumulate import compute_gradient
from train.main import main
from train.verify import main as verify

CONFIG = str(Path(__file__).with_name("NAME.yaml"))


def test_the_gradient_is_that_of_the_whole_batch() -> None:
    assert verify([CONFIG]) == 0


def test_it_learns(tmp_path: Path) -> None:
    argv = [CONFIG, f"output_dir={tmp_path}", "name=run", "wandb.mode=disabled", "evaluate.at_start=true"]

    code = main(argv, "accumulate", compute_gradient)

    assert code == 0
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert losses[-1] < losses[0] / 10
'''


class NameRefused(UserError):
    """Nothing was written; the message says what to type."""


@entry_point
def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return FINISHED if argv and argv[0] in ("-h", "--help") else BAD_CONFIG
    module, config, test = write(argv[0])
    print(f"wrote {module}, {config} and {test}. They work as they are; type:")
    print(f"  ./launch.sh {config}\n  python scripts/verify.py {config}\n  python -m pytest {test}")
    return FINISHED


def write(name: str) -> list[Path]:
    """The module, the config and the test of that name, all or none of them. Raises NameRefused."""
    check_name(name)
    there = [str(path) for path in _paths(name) if path.exists()]
    if there:
        raise NameRefused(
            f"new: {name} is there already\n  got:  {', '.join(there)}\n"
            "  why:  it holds your work, and is never overwritten\n  type: python scripts/new.py "
            f"{_free_name(name)}"
        )
    _check_importable(name)
    FOLDER.mkdir(exist_ok=True)
    paths = _paths(name)
    for path, text in zip(paths, (MODULE, CONFIG, TEST), strict=True):
        path.write_text(text.replace("NAME", name), encoding="utf-8")
    return paths


def _paths(name: str) -> list[Path]:
    return [FOLDER / f"{name}.py", FOLDER / f"{name}.yaml", FOLDER / f"test_{name}.py"]


def check_name(name: str) -> None:
    """Raises NameRefused."""
    if re.fullmatch("[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name):
        return
    plain = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
    proposal = f"my_{plain}" if keyword.iskeyword(plain) else plain or "hearts"
    raise NameRefused(
        f"new: {name!r} cannot be the name of a module\n  got:  {name!r}\n"
        "  why:  configs name your functions by it, as NAME.data: small letters, digits and _, a "
        f"letter first, no word of Python's own\n  type: python scripts/new.py {proposal}"
    )


def _check_importable(name: str) -> None:
    """Installed packages come before my/: a file of the same name would never be found."""
    found = importlib.util.find_spec(name)
    if found is not None:
        where = found.origin or ", ".join(found.submodule_search_locations or ())
        raise NameRefused(
            f"new: there is a module {name!r} already\n  got:  {where}\n"
            f"  why:  it would be found before my/{name}.py\n  type: python scripts/new.py "
            f"{_free_name(f'my_{name}')}"
        )


def _free_name(name: str) -> str:
    number, free = 2, name
    while any(path.exists() for path in _paths(free)):
        number, free = number + 1, f"{name}{number}"
    return free


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
