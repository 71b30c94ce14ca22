"""Out of memory: what ran out, where, and what to type, the cheapest first.

What is an out-of-memory is decided by errors.is_out_of_memory alone. In a step of the accumulation
loop it is done again in smaller pieces first (gradients/shrink.py): this here is for where that
cannot be.
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
from train.plan.run_plan import RunPlan

PACKAGE = Path(__file__).parents[1]
SHARDING = "configs/accelerate/fsdp2.yaml"

OF_OTHER = r"rank (\d+): "
"""How an error begins that another rank has had (Ranks.together)."""

MICRO_BATCH, READING, UPDATE = "a micro-batch", "reading samples", "the optimizer's step"
EVALUATION, SAVE = "an evaluation", "a save"
UNKNOWN = ""


@dataclass(frozen=True)
class Shortage:
    headline: str
    """Which rank, where, and what its allocator has said."""
    advice: str
    """Lines to type."""

    def told(self, kept: str) -> str:
        return f"{self.headline}\n  kept: {kept}\n  type: {self.advice}"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was under way, on one rank."""

    rank: int
    steps_done: int
    device: torch.device
    is_sharded: bool
    has_blocks: bool
    """For activation checkpointing."""
    config: Config
    plan: RunPlan
    remembered: int | None = None
    """Samples of a micro-batch with which the next start of this run goes on."""
    has_checkpoint: bool = True


def in_training(error: BaseException, training: Training) -> Shortage:
    config, plan, step = training.config, training.plan, training.steps_done
    place = place_of(error)
    when = f"after step {step:,}" if place in (EVALUATION, SAVE) else f"in step {step + 1:,}"
    where = f"{when}, in {place}" if place else when
    if place == MICRO_BATCH:
        where += f" of {plan.batch.micro:,}"
    # By another command line, a run without a name in its config would be another one.
    same_run = f" name={plan.name}" if step else ""
    lines: list[str] = []
    if training.remembered and training.has_checkpoint:
        lines.append(
            f"nothing else: it goes on in micro-batches of {training.remembered} (the same curve)"
        )
    elif training.remembered:
        lines.append(
            f"checkpoint.resume=never   (it starts over in micro-batches of {training.remembered})"
        )
    elif place not in (UPDATE, SAVE):
        lines += _smaller_pieces(config, plan, same_run)
    if place == READING and config.data.workers:
        lines.append(f"data.workers=0{same_run}   (reads slower)")
    if place in (MICRO_BATCH, UNKNOWN):
        lines += _fewer_activations(config, same_run, training.has_blocks)
    if place in (MICRO_BATCH, UPDATE, UNKNOWN):
        lines += _smaller_state(plan.batch.world_size, training.is_sharded, config)
    return Shortage(_headline(error, training.rank, where, training.device), _advice(lines))


def at_start(error: BaseException, rank: int, config: Config) -> Shortage:
    """Before the first step: weights alone, or a trial with few samples."""
    on_gpu = torch.cuda.is_available() and not trains_on_cpu()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if on_gpu
        else torch.device("cpu")
    )
    is_sharded = asked_sharding() is not None
    lines = [
        *_fewer_activations(config),
        *_smaller_state(launched_world_size(), is_sharded, config),
    ]
    return Shortage(_headline(error, rank, "before the first step", device), _advice(lines))


def place_of(error: BaseException) -> str:
    """By the functions of this package that were under way, the outermost first. UNKNOWN: on
    another rank.
    """
    if re.match(OF_OTHER, str(error)):
        return UNKNOWN
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        name = file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else ""
        if name == "step.py":
            return UPDATE if frame.f_code.co_name == "update" else MICRO_BATCH
        if name == "evaluation/evaluator.py":
            return EVALUATION
        if name.startswith("checkpoint/"):
            return SAVE
        if name.startswith("data/"):
            return READING
    return MICRO_BATCH


def _headline(error: BaseException, rank: int, where: str, device: torch.device) -> str:
    text = str(error).strip().partition("\n")[0]
    of_other = re.match(OF_OTHER, text)
    if of_other:
        text = text.removeprefix(of_other[0])
    text = re.sub(r"^\[enforce fail at [^\]]*\] err == 0\. ", "", text)
    # What torch adds on its own allocator fills a screen.
    said = ". ".join([sentence for sentence in text.split(". ") if sentence][:3]).rstrip(".")
    who = of_other[1] if of_other else rank
    return (
        f"rank {who} ran out of memory {where} ({_capacity(error, device)}). "
        f"{type(error).__name__}: {said}"
    )


def _capacity(error: BaseException, device: torch.device) -> str:
    """Of what ran out: in a training on a GPU, it can be the host's."""
    if device.type == "cuda" and (
        isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
    ):
        return (
            f"{device} with {torch.cuda.get_device_properties(device).total_memory / 2**30:.3g} GiB"
        )
    return f"the host with {psutil.virtual_memory().total / 2**30:.3g} GiB"


def _smaller_pieces(config: Config, plan: RunPlan, same_run: str) -> Iterator[str]:
    stated, half = config.batch, (plan.batch.micro + 1) // 2
    why = "the same batch and curve, in more micro-batches"
    if plan.loop == "standard":
        why += "; with accumulate in place of standard"
    if stated.micro_tokens:
        least = config.data.max_length or 1
        if stated.micro_tokens // 2 >= least:
            yield f"batch.micro_tokens={stated.micro_tokens // 2}{same_run}   ({why})"
        return
    if half == plan.batch.micro:
        return
    words = [f"batch.micro={half}"]
    if stated.effective is None and stated.effective_tokens is None and not plan.batch.stages:
        words.append(f"batch.effective={plan.batch.effective}")  # else it would follow from micro
    if stated.accumulation_steps is not None:
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
        yield "batch.sync=micro   (ranks keep no whole gradients; they add up at each micro-step)"


def _advice(lines: list[str]) -> str:
    if not lines:
        return "nothing here makes it smaller: a smaller model, shorter samples, or more memory"
    return "the same command with one of these, the cheapest first\n" + "\n".join(
        f"        {line}" for line in lines
    )
