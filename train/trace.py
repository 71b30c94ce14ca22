"""python -m train.trace FILE CONFIG [key=value ...]: what a step holds in memory, into FILE as
JSON; takes none itself.

A process of its own, for --plan and batch.micro=auto: it traces the user's model on tensors without
values, and a fault in there can end a process without a word (tensors without values on a GPU do,
in torch 2.13 for the CPU).
"""

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from train.batch.window import Batch
from train.config import Config, load, resolve
from train.data import Fitted, Rows, open_datasets
from train.data.loader import Loader
from train.data.reading import INPUTS
from train.distributed.accelerator import connect
from train.distributed.ranks import Ranks
from train.errors import FINISHED, entry_point
from train.memory.fake_mode import fake_mode
from train.memory.memory_trace import (
    AS_CONFIGURED,
    CHECKPOINTED,
    CHUNKED,
    CHUNKED_AND_CHECKPOINTED,
    MemoryTrace,
)
from train.memory.predict import find_peaks
from train.memory.sizes import stored_bytes, tensors_of
from train.memory.traced_step import record
from train.setup import make_learner
from train.step import Learner
from train.tasks import by_term, make_task


@entry_point
def main(argv: Sequence[str]) -> int:
    file, target, variants, sizes, *words = argv
    foresight = foresee(
        load(words).config, target, variants.split(","), [int(size) for size in sizes.split(",")]
    )
    Path(file).write_text(json.dumps(foresight.as_dict()), encoding="utf-8")
    return FINISHED


def foresee(
    config: Config,
    target: str,
    variants: Sequence[str] = (AS_CONFIGURED,),
    sizes: Sequence[int] = (1, 16),
) -> MemoryTrace:
    """What a step holds on a `target` ("cuda" or "cpu"), as the config has it and with the
    `variants` of its memory.

    `sizes`: micro-batches that matter. What cannot be traced is said in it.
    """
    # The config is changed for a trace on a CPU: what that leaves out goes to the reader as notes.
    config, notes = traceable(config, target)
    task = make_task(config)
    sets = open_datasets(config, task.columns)
    # Samples as a run would have them, since their sizes and types decide what a step holds.
    like = sets.trial(config.seed, 8)
    in_memory = [rows for rows in (sets.train, *sets.evaluation.values()) if isinstance(rows, Rows)]
    held = [column for rows in in_memory for column in rows.columns.values()]
    found = MemoryTrace(
        target=target,
        sample_bytes=stored_bytes(like.values()) // len(next(iter(like.values()))),
        samples_held=stored_bytes(held),
        workers=config.data.workers if isinstance(sets.train, Loader) else 0,
        notes=notes,
    )
    tracing = Tracing(like, target, sorted(set(sizes)))
    for name in variants:
        memory = replace(config.memory, **CHANGES[name])
        # A variant that changes nothing is traced as the config itself.
        if name == AS_CONFIGURED or memory != config.memory:
            found = tracing.add(found, name, replace(config, memory=memory))
    return found


@dataclass(frozen=True)
class Tracing:
    """Samples as those that are trained, what they are trained on, and sizes of micro-batches."""

    like: Batch
    target: str
    sizes: Sequence[int]

    def add(self, found: MemoryTrace, name: str, config: Config) -> MemoryTrace:
        """`found`, and in it what is known of this variant."""
        try:
            task = make_task(config)
            # Outside of the fake mode: terms are counted on samples with values.
            terms = list(by_term(task.loss_weight(self.like)))
            with fake_mode():
                # Their own numbers are not known yet, and no number is needed.
                fitted = _like_fitted(self.like) if config.data.normalize else None
                learner = make_learner(config, task, connect(config)[0], 1, Ranks(), fitted)
                if name == AS_CONFIGURED:
                    found = replace(found, **_held(learner, config))
                peaks = find_peaks(
                    lambda size: record(learner, self.like, terms, size, self.target), self.sizes
                )
                if name == AS_CONFIGURED:
                    # Only after a step: an optimizer makes its state in the first one.
                    found = replace(
                        found, optimizer=stored_bytes(tensors_of(learner.optimizer.state))
                    )
            return replace(found, peaks={**found.peaks, name: peaks})
        # whatever a user's model does: what is known without a step is there all the same
        except Exception as error:
            sentence = (
                f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            )
            return replace(found, failures={**found.failures, name: sentence})


CHANGES: Mapping[str, dict[str, Any]] = {
    AS_CONFIGURED: {},
    CHECKPOINTED: {"activation_checkpointing": True},
    CHUNKED: {"chunked_loss": True},
    CHUNKED_AND_CHECKPOINTED: {"activation_checkpointing": True, "chunked_loss": True},
}


def _like_fitted(like: Batch) -> Fitted:
    """As data.normalize finds numbers: their size counts, and their type, in which inputs are
    scaled.
    """
    like_one = torch.zeros(like[INPUTS].shape[1:], dtype=torch.float64)
    return Fitted(mean=like_one, deviation=torch.ones_like(like_one), rows=1)


def _held(learner: Learner, config: Config) -> dict[str, Any]:
    """What is known without a step."""
    module = learner.module
    wide = torch.promote_types(learner.dtype, torch.float32).itemsize
    weights = stored_bytes([*module.parameters(), *module.buffers()])
    ema = weights if config.ema.decay is not None else 0
    # In a narrow type the average holds a wide copy besides.
    if ema and learner.dtype.itemsize < wide:
        ema += sum(p.numel() * wide for p in module.parameters())
    trained = sum(p.numel() for p in learner.parameters)
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "weights": weights,
        "gradients": trained * wide,
        "reduced_bytes": trained * wide,
        "ema": ema,
    }


def traceable(config: Config, target: str) -> tuple[Config, tuple[str, ...]]:
    """The config as it is traced on a CPU, and what that leaves out."""
    notes = []
    model, precision, optimizer = config.model, config.precision, config.optimizer
    # Where the weights come from changes no size, and reading them takes long.
    if model.init_from is not None:
        model = replace(model, init_from=None)
    if model.compile:
        model = replace(model, compile=False)
        notes.append("model.compile: traced as it is without")
    if precision == "fp16":
        precision = "bf16"
        notes.append("precision=fp16: traced in bf16, which is as wide")
    if target == "cuda":
        kinds = inspect.signature(resolve(optimizer.target, "torch.optim")).parameters
        # torch's default on a GPU; on a CPU, it takes parameters one by one.
        if (
            "foreach" in kinds
            and "fused" not in kinds
            and not optimizer.args.keys() & {"foreach", "differentiable"}
        ):
            optimizer = replace(optimizer, args={**optimizer.args, "foreach": True})
    wandb = replace(config.wandb, mode="disabled")
    config = replace(
        config,
        model=model,
        precision=precision,
        optimizer=optimizer,
        wandb=wandb,
        on_nonfinite="skip",
    )
    return config, tuple(notes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
