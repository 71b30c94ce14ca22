"""The peak memory of a run, traced in a separate process; how other processes get the result."""

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
from train.memory.cache_file import cache_key, read_cached, write_cached
from train.memory.predict import Peaks

AS_CONFIGURED = "as configured"
CHECKPOINTED = "memory.activation_checkpointing=true"
CHUNKED = "memory.chunked_loss=true"
CHUNKED_AND_CHECKPOINTED = f"{CHECKPOINTED} {CHUNKED}"
VARIANTS = (AS_CONFIGURED, CHECKPOINTED, CHUNKED, CHUNKED_AND_CHECKPOINTED)

LAUNCHER_VARIABLES = (
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
"""Prefixes of the environment variables that would make the process a rank, or configure its
launcher.
"""

TIMEOUT_SECONDS = 600

KIND = "traced"


@dataclass(frozen=True, kw_only=True)
class MemoryTrace:
    """Bytes on one rank that holds all of the model."""

    target: str  # cuda or cpu
    sample_bytes: int  # of one sample, as it is sent to the device
    samples_held: int = 0  # in the host's memory, by each rank, from the start to the end
    workers: int = 0  # processes of each rank that read samples ahead of it, into shared memory
    notes: Sequence[str] = ()  # what the trace does not cover
    parameters: int = 0  # numbers; 0: the model could not be made without memory
    weights: int = 0  # buffers too
    gradients: int = 0
    reduced_bytes: int = 0  # of one all-reduce
    optimizer: int | None = None  # its state; None: not known without a step
    ema: int = 0
    peaks: Mapping[str, Mapping[int, Peaks]] = field(default_factory=dict)
    """By variant, then by micro-batches of a step: 1, or 2 for any larger number. Without the
    average of the weights.
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
        """{kind: bytes} at the peak. Raises KeyError where it could not be traced."""
        # Under DDP gradients persist as its buckets; a lone rank with one micro-batch frees them.
        gradients_persist = accumulation_steps > 1 or world_size > 1
        micro_batches = 2 if gradients_persist else 1
        return self.peaks[variant][micro_batches].anatomy(samples) | {"ema": self.ema}

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no integer keys."""
        peaks = {}
        for name, by_steps in self.peaks.items():
            peaks[name] = {str(steps): each.as_dict() for steps, each in by_steps.items()}
        return asdict(self) | {"peaks": peaks}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "MemoryTrace":
        peaks = {}
        for name, by_steps in value["peaks"].items():
            peaks[name] = {int(steps): Peaks.from_dict(each) for steps, each in by_steps.items()}
        return cls(**{**value, "peaks": peaks})


def trace_in_subprocess(
    words: Sequence[str],
    target: str,
    variants: Sequence[str] = (AS_CONFIGURED,),
    sizes: Sequence[int] = (1, 16),
) -> MemoryTrace:
    """Trace the config that `words` of a command line name, by python -m train.trace.

    A separate process, since a fault in the trace can end the process. Where it ends without a
    result, `failures` has the reason.
    """
    environment = {}
    for name, value in os.environ.items():
        if not name.startswith(LAUNCHER_VARIABLES):
            environment[name] = value
    # On the CPU also beside a GPU: fake tensors on that can end the process (train/trace.py).
    environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="isobatch-trace-") as folder:
        file = Path(folder) / "trace.json"
        command = [sys.executable, "-m", "train.trace", str(file), target]
        command += [",".join(variants), ",".join(map(str, sizes)), *words]
        try:
            process = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
            # The last line of a stack trace names the error.
            errors = process.stderr.strip().splitlines()
            reason = errors[-1] if errors else f"it ended with code {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"it took more than {TIMEOUT_SECONDS} seconds"
        # The file, not the exit code: a process may have written its result, and then ended by a
        # fault.
        if file.is_file():
            return MemoryTrace.from_dict(json.loads(file.read_text()))
    return MemoryTrace(target=target, sample_bytes=0, failures={AS_CONFIGURED: reason[:300]})


def save_trace(trace: MemoryTrace, config: Config) -> None:
    """Cache the peaks as configured, for runs of this model to compare their own peaks with."""
    if not trace.peaks:
        return
    peaks = {}
    if AS_CONFIGURED in trace.peaks:
        peaks[AS_CONFIGURED] = trace.peaks[AS_CONFIGURED]
    write_cached(KIND, _key(config, trace.target), replace(trace, peaks=peaks).as_dict())


def saved_trace(config: Config, target: str) -> MemoryTrace | None:
    """What save_trace cached of this model on such a device."""
    cached = read_cached(KIND, _key(config, target))
    if cached is None:
        return None
    try:
        return MemoryTrace.from_dict(cached)
    except (TypeError, KeyError):  # written by another version of this package
        return None


def _key(config: Config, target: str) -> str:
    """Of everything that the peak of a step depends on, except the batch size."""
    data = config.data
    sections = (
        config.model,
        config.task,
        config.optimizer,
        # What may be used decides what fits, not how much a step takes.
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
    return cache_key(facts | {"target": target, "torch": torch.__version__})
