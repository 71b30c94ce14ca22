"""What the loops of the benchmark train: two models, their data in a parquet file, and our config
of the same.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

STEPS_OF_AN_EPOCH = 50
NEVER = 1_000_000
TOKENS = 8


@dataclass(frozen=True)
class Work:
    effective: int  # samples per optimizer step, over all ranks
    model: dict[str, Any]
    task: str
    steps: int  # optimizer steps that are timed in one turn
    turns: int
    warm_up: int  # optimizer steps before the first turn

    @property
    def samples(self) -> int:
        return self.effective * STEPS_OF_AN_EPOCH


TINY = {"target": "mlp", "args": {"inputs": 64, "hidden": [256, 256], "outputs": 10}}
GPT = {"target": "gpt", "args": {"vocabulary": 256, "layers": 6, "heads": 4, "width": 256}}
WORKS = {
    "tiny": Work(64, TINY, "classification", steps=20, turns=20, warm_up=22),
    "gpt": Work(32, GPT, "causal_lm", steps=5, turns=8, warm_up=12),
}


def write_data(name: str, file: Path) -> None:
    """Random: what is learnt does not matter here."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    generator = torch.Generator().manual_seed(0)
    samples = WORKS[name].samples
    if name == "tiny":
        inputs = torch.randn(samples, 64, generator=generator)
        labels = torch.randint(10, (samples,), generator=generator)
    else:
        inputs = torch.randint(256, (samples, TOKENS), generator=generator)
        labels = torch.randint(256, (samples, TOKENS), generator=generator)
    Dataset.from_dict({"inputs": inputs.numpy(), "labels": labels.numpy()}).to_parquet(file)


def write_config(name: str, data: Path, file: Path) -> None:
    """The clip is never reached: it costs what it costs, and changes no weight."""
    work = WORKS[name]
    config = {
        "data": {"source": str(data), "drop_tail": True},
        "model": work.model,
        "task": work.task,
        "batch": {"effective": work.effective},
        "optimizer": {
            "target": "adamw",
            "lr": 1e-3,
            "args": {"weight_decay": 0.01},
            "max_grad_norm": 1e6,
        },
        "schedule": {"name": "constant"},
        "duration": {"steps": NEVER},
        "evaluate": {"every_steps": NEVER},
        "checkpoint": {"every_steps": NEVER, "resume": "never"},
        "wandb": {"mode": "disabled"},
    }
    file.write_text(json.dumps(config))  # which is YAML too


def read_columns(data: Path) -> dict[str, Tensor]:
    """As a script does: by `datasets`, once, since it fits in memory."""
    from datasets import load_dataset

    dataset = load_dataset("parquet", data_files=str(data), split="train").with_format("torch")
    return dict(dataset[:])


def make_model(name: str) -> nn.Module:
    """By torch alone where that is no work; the GPT is the class that we ship."""
    if name == "tiny":
        return nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    return shipped_model(name)


def shipped_model(name: str) -> nn.Module:
    """Ours, as its class makes it: no hook of anybody's."""
    from train.models.gpt import GPT as Gpt
    from train.models.mlp import MLP

    args = WORKS[name].model["args"]
    return MLP(**args) if name == "tiny" else Gpt(**args)


def loss_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "tiny":
        return cross_entropy
    return lambda logits, labels: cross_entropy(logits.flatten(0, 1), labels.flatten())
