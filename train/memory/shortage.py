"""The message of a run that ends out of memory: what ran out, where, and what to set.

errors.is_out_of_memory alone decides what is an out-of-memory error. The accumulation loop first
computes the step again in smaller pieces (gradients/shrink.py): this module is for where that is
not possible.
"""

import os
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from train.config import Config
from train.distributed.accelerator import trains_on_cpu
from train.distributed.ranks import launched_world_size
from train.distributed.sharded import asked_sharding
from train.memory.sizes import GIB
from train.plan.run_plan import RunPlan

PACKAGE = Path(__file__).parents[1]
SHARDING = "configs/accelerate/fsdp2.yaml"

OF_OTHER_RANK = r"rank (\d+): "
"""How an error begins that another rank has had (Ranks.together)."""

MICRO_BATCH = "a micro-batch"
READING = "reading samples"
UPDATE = "the optimizer's step"
EVALUATION = "an evaluation"
SAVE = "a save"
UNKNOWN = ""


@dataclass(frozen=True)
class Shortage:
    headline: str
    """Which rank, where, and its allocator's own message."""
    advice: str
    """Lines to run or set."""

    def message(self, kept: str) -> str:
        """`kept`: what the run leaves to resume from."""
        return f"{self.headline}\n  kept: {kept}\n  {self.advice}"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one rank was doing."""

    rank: int
    steps_done: int
    device: torch.device
    is_sharded: bool
    has_blocks: bool
    """Whether activation checkpointing is possible."""
    config: Config
    plan: RunPlan
    remembered: int | None = None
    """Samples of a micro-batch with which the next start of this run resumes."""
    has_checkpoint: bool = True


def in_training(error: BaseException, training: Training) -> Shortage:
    config = training.config
    plan = training.plan
    step = training.steps_done
    phase = phase_of(error)
    # Without the name, a command line with one more override would name a new run.
    same_run = f" name={plan.name}" if step else ""
    # In the order of what they cost the user: first what leaves the curve as it is.
    lines: list[str] = []
    if training.remembered and training.has_checkpoint:
        lines.append(
            f"nothing else: it resumes in micro-batches of {training.remembered} (the same curve)"
        )
    elif training.remembered:
        lines.append(
            f"checkpoint.resume=never   (it starts over in micro-batches of {training.remembered})"
        )
    elif phase not in (UPDATE, SAVE):
        lines += _smaller_micro_batches(config, plan, same_run)
    if phase == READING and config.data.workers:
        lines.append(f"data.workers=0{same_run}   (reads slower)")
    if phase in (MICRO_BATCH, UNKNOWN):
        lines += _fewer_activations(config, same_run, training.has_blocks)
    if phase in (MICRO_BATCH, UPDATE, UNKNOWN):
        lines += _smaller_state(plan.batch.world_size, training.is_sharded, config)
    where = _where(phase, step, plan.batch.micro)
    return Shortage(_headline(error, training.rank, where, training.device), _advice(lines))


def at_start(error: BaseException, rank: int, config: Config) -> Shortage:
    """Before the first step: the weights alone, or a trial with few samples, do not fit."""
    device = torch.device("cpu")
    if torch.cuda.is_available() and not trains_on_cpu():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    is_sharded = asked_sharding() is not None
    lines = [
        *_fewer_activations(config),
        *_smaller_state(launched_world_size(), is_sharded, config),
    ]
    return Shortage(_headline(error, rank, "before the first step", device), _advice(lines))


def phase_of(error: BaseException) -> str:
    """By the outermost functions of this package in the traceback; UNKNOWN on another rank."""
    if re.match(OF_OTHER_RANK, str(error)):
        return UNKNOWN
    # From the outside in: step.py calls the model, and an evaluation reads data; the outer one says
    # what the run was doing.
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if not file.is_relative_to(PACKAGE):
            continue
        name = file.relative_to(PACKAGE).as_posix()
        if name == "step.py":
            return UPDATE if frame.f_code.co_name == "update" else MICRO_BATCH
        if name == "evaluation/evaluator.py":
            return EVALUATION
        if name.startswith("checkpoint/"):
            return SAVE
        if name.startswith("data/"):
            return READING
    return MICRO_BATCH


def _where(phase: str, steps_done: int, micro: int) -> str:
    """`in step 3, in a micro-batch of 8`"""
    if phase in (EVALUATION, SAVE):
        return f"after step {steps_done:,}, in {phase}"
    step = f"in step {steps_done + 1:,}"
    if phase == UNKNOWN:
        return step
    if phase == MICRO_BATCH:
        return f"{step}, in {phase} of {micro:,}"
    return f"{step}, in {phase}"


def _headline(error: BaseException, rank: int, where: str, device: torch.device) -> str:
    text = str(error).strip().partition("\n")[0]
    other_rank = re.match(OF_OTHER_RANK, text)
    if other_rank:
        text = text.removeprefix(other_rank[0])
    # torch's allocator on a CPU puts its own source line in front.
    text = re.sub(r"^\[enforce fail at [^\]]*\] err == 0\. ", "", text)
    # The first sentences only: what torch adds about its allocator fills a screen.
    sentences = [sentence for sentence in text.split(". ") if sentence]
    message = ". ".join(sentences[:3]).rstrip(".")
    failed_rank = other_rank[1] if other_rank else rank
    return (
        f"rank {failed_rank} ran out of memory {where} ({_capacity(error, device)}). "
        f"{type(error).__name__}: {message}"
    )


def _capacity(error: BaseException, device: torch.device) -> str:
    """Of the memory that ran out: also when training on a GPU, it may be the host's."""
    is_of_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
    if device.type == "cuda" and is_of_gpu:
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{device} with {total / GIB:.3g} GiB"
    return f"the host with {psutil.virtual_memory().total / GIB:.3g} GiB"


def _smaller_micro_batches(config: Config, plan: RunPlan, same_run: str) -> Iterator[str]:
    batch = config.batch
    why = "the same batch and curve, in more micro-batches"
    if plan.loop == "standard":
        why += "; with accumulate in place of standard"
    if batch.micro_tokens:
        # A micro-batch holds at least one sample of the largest length.
        shortest = config.data.max_length or 1
        if batch.micro_tokens // 2 >= shortest:
            yield f"batch.micro_tokens={batch.micro_tokens // 2}{same_run}   ({why})"
        return
    half = (plan.batch.micro + 1) // 2
    # One sample already.
    if half == plan.batch.micro:
        return
    words = [f"batch.micro={half}"]
    if batch.effective is None and batch.effective_tokens is None and not plan.batch.stages:
        # Else the effective batch would follow from the micro-batch, and shrink with it.
        words.append(f"batch.effective={plan.batch.effective}")
    if batch.accumulation_steps is not None:
        words.append("batch.accumulation_steps=null")
    yield f"{' '.join(words)}{same_run}   ({why})"


def _fewer_activations(
    config: Config, same_run: str = "", has_blocks: bool = True
) -> Iterator[str]:
    if has_blocks and not config.memory.activation_checkpointing:
        key = f"memory.activation_checkpointing=true{same_run}"
        yield f"{key}   (the same gradient, for about a third more computation)"
    if config.precision == "fp32":
        yield "precision=bf16   (rounds more: another curve, so another run)"


def _smaller_state(world_size: int, is_sharded: bool, config: Config) -> Iterator[str]:
    if world_size > 1 and not is_sharded:
        yield (
            f"LAUNCHER={SHARDING} before the command   (ranks share weights, gradients and "
            "optimizer)"
        )
    if is_sharded and config.batch.sync == "step":
        yield (
            "batch.sync=micro   (ranks keep no unsharded gradients; they are reduced at each "
            "micro-step)"
        )


def _advice(lines: list[str]) -> str:
    if not lines:
        return "no setting makes it smaller: use a smaller model, shorter samples, or more memory"
    choices = "".join(f"\n        {line}" for line in lines)
    return f"Run: the same command with one of these, the cheapest first{choices}"
