"""What a run will hold in memory, traced in a process of its own; and how another
process gets it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from train.config import Config, source_hash
from train.memory.predict import Peaks
from train.memory.remembered import key_of, recall, remember

AS_CONFIGURED = "as configured"
CHECKPOINTED = "memory.activation_checkpointing=true"
CHUNKED = "memory.chunked_loss=true"
SMALLEST = f"{CHECKPOINTED} {CHUNKED}"
VARIANTS = (AS_CONFIGURED, CHECKPOINTED, CHUNKED, SMALLEST)

OF_A_RANK = (
    "RANK",
    "LOCAL_",
    "WORLD_SIZE",
    "MASTER_",
    "GROUP_",
    "ROLE_",
    "TORCHELASTIC_",
    "ISOBATCH_",
    "ACCELERATE_",
)
"""How variables begin that would make a rank of the process, or tell it what its launcher was told.
"""

SECONDS = 600

KIND = "traced"


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Bytes, on one rank that holds all of the model."""

    target: str  # cuda or cpu
    sample_bytes: int  # of one sample, as it travels
    samples_held: int = 0  # in the host's memory, by each rank, from the start to the end
    workers: int = 0  # processes of each rank that read samples ahead of it, into shared memory
    notes: Sequence[str] = ()  # what the trace leaves out
    parameters: int = 0  # numbers; 0: the model could not be made without memory
    weights: int = 0  # buffers too
    gradients: int = 0
    reduced_bytes: int = 0  # what one all-reduce adds up
    optimizer: int | None = None  # its state; None: not known without a step
    ema: int = 0
    peaks: Mapping[str, Mapping[int, Peaks]] = field(default_factory=dict)
    """By variant, then by micro-batches of a step: 1, or 2 for any more. Without the average of the
    weights.
    """
    failures: Mapping[str, str] = field(default_factory=dict)
    """Why a variant could not be traced."""

    def peak(
        self,
        samples: int,
        accumulation_steps: int,
        world_size: int = 1,
        variant: str = AS_CONFIGURED,
    ) -> int:
        """Of a rank, in bytes. Raises KeyError (NotTraced is one) where it could not be traced."""
        return sum(self.anatomy(samples, accumulation_steps, world_size, variant).values())

    def anatomy(
        self,
        samples: int,
        accumulation_steps: int,
        world_size: int = 1,
        variant: str = AS_CONFIGURED,
    ) -> dict[str, int]:
        """{kind: bytes} of the peak. Under DDP gradients stay, as its buckets, which a lone rank
        frees in each step.
        """
        several = accumulation_steps > 1 or world_size > 1
        return self.peaks[variant][2 if several else 1].anatomy(samples) | {"ema": self.ema}

    def as_dict(self) -> dict[str, Any]:
        peaks = {
            name: {str(k): each.as_dict() for k, each in of.items()}
            for name, of in self.peaks.items()
        }
        return asdict(self) | {"peaks": peaks}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Foresight":
        peaks = {}
        for name, of in value["peaks"].items():
            peaks[name] = {int(steps): Peaks.from_dict(each) for steps, each in of.items()}
        return cls(**{**value, "peaks": peaks})


def foresee_apart(
    words: Sequence[str],
    target: str,
    variants: Sequence[str] = (AS_CONFIGURED,),
    sizes: Sequence[int] = (1, 16),
) -> Foresight:
    """Of the config that `words` of a command line ask for. Where the process ends without an
    answer, that is said.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(OF_A_RANK)
    }
    environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="isobatch-trace-") as folder:
        file = Path(folder) / "trace.json"
        command = [sys.executable, "-m", "train.trace", str(file), target]
        command += [",".join(variants), ",".join(map(str, sizes)), *words]
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
            said = ended.stderr.strip().splitlines() or [f"it ended with code {ended.returncode}"]
        except subprocess.TimeoutExpired:
            said = [f"it took more than {SECONDS} seconds"]
        if file.is_file():
            return Foresight.from_dict(json.loads(file.read_text()))
    return Foresight(target=target, sample_bytes=0, failures={AS_CONFIGURED: said[-1][:300]})


def keep(foresight: Foresight, config: Config) -> None:
    """For the runs of this model, which are held against it."""
    if foresight.peaks:
        peaks = (
            {AS_CONFIGURED: foresight.peaks[AS_CONFIGURED]}
            if AS_CONFIGURED in foresight.peaks
            else {}
        )
        remember(KIND, _key(config, foresight.target), replace(foresight, peaks=peaks).as_dict())


def recalled(config: Config, target: str) -> Foresight | None:
    """What was kept of this model on such a device."""
    found = recall(KIND, _key(config, target))
    try:
        return None if found is None else Foresight.from_dict(found)
    except (TypeError, KeyError):  # of another edition
        return None


def _key(config: Config, target: str) -> str:
    """Of all that a step's peak depends on, but its size."""
    data = config.data
    sections = (
        config.model,
        config.task,
        config.optimizer,
        replace(config.memory, limit_gib=None),
        config.ema,
    )
    shape = [
        data.source,
        data.args,
        data.columns,
        data.block_size,
        data.max_length,
        data.transform,
        asdict(data.image),
    ]
    facts: dict[str, Any] = {type(section).__name__: asdict(section) for section in sections}
    facts |= {"shape": shape, "precision": config.precision, "code": source_hash(config)}
    return key_of(facts | {"target": target, "torch": torch.__version__})
