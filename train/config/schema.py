"""The typed defaults of a config. A YAML file states only what differs.

Each field holds all there is to say of its key: type, what the key decides, range (annotations.py),
default, and below it what it means. recipe.py has the sections on what is trained.
"""

from dataclasses import dataclass, field
from typing import Annotated

from train.config.annotations import (
    AT_LEAST_0,
    AT_LEAST_1,
    EXECUTION,
    MATHEMATICS,
    NEUTRAL,
    POSITIVE,
    SEED,
    one_of,
)
from train.config.recipe import Batch, Data, Duration, Ema, Model, Optimizer, Schedule, Task

PRECISIONS = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float64": "fp64",
}
"""{long name: the short one that the config ends up with}, of `precision` and `model.dtype`."""


@dataclass(frozen=True)
class Evaluate:
    """When and on what to evaluate; the last step is always evaluated. At most one every_*."""

    # NEUTRAL: an evaluation leaves no trace in the training, neither in buffers nor in generators.
    every_steps: Annotated[int | None, NEUTRAL, AT_LEAST_1] = None
    """Optimizer steps between evaluations."""
    every_samples: Annotated[int | None, NEUTRAL, AT_LEAST_1] = None
    """Samples between evaluations; they take place at the end of the step that reaches them."""
    every_tokens: Annotated[int | None, NEUTRAL, AT_LEAST_1] = None
    """Tokens of blocks (data.block_size) between evaluations, likewise."""
    at_start: Annotated[bool, NEUTRAL] = False
    """Evaluate the untrained model too."""
    sets: Annotated[dict[str, str], NEUTRAL] = field(default_factory=dict)
    """Further sets to evaluate on: {name: split of the data}."""
    best: Annotated[str | None, NEUTRAL] = None
    """Metric that decides which evaluation is best, such as eval/accuracy. Whether more is better
    is known for loss, accuracy, perplexity and their like; for others write `max eval/mine` or
    `min eval/mine`.
    """


@dataclass(frozen=True)
class Log:
    every_steps: Annotated[int, NEUTRAL, AT_LEAST_1] = 10
    """Optimizer steps between rows of metrics.jsonl (and lines on the screen)."""


@dataclass(frozen=True)
class NoiseScale:
    # EXECUTION: a measurement costs time, and the weights are the same bits either way.
    every_steps: Annotated[int, EXECUTION, AT_LEAST_0] = 20
    """Optimizer steps between measurements of the gradient noise scale, which shows whether
    accumulation pays. Each measurement reads every gradient once more, per micro-batch. 0: none.
    """


@dataclass(frozen=True)
class Checkpoint:
    # NEUTRAL: a run that resumes has the curve of one that was never stopped.
    every_steps: Annotated[int, NEUTRAL, AT_LEAST_1] = 1000
    """Optimizer steps between checkpoints. One is also written where training stops or ends."""
    keep: Annotated[int, NEUTRAL, AT_LEAST_1] = 2
    """Complete checkpoints to keep, the newest ones."""
    resume: Annotated[str, NEUTRAL] = "auto"
    """What a second start of the same name does: `auto` resumes from the newest checkpoint; `never`
    moves the old run folder to NAME.1 and starts over; a path (a checkpoint, or a run folder)
    resumes from there.
    """


@dataclass(frozen=True)
class Profile:
    # EXECUTION: steps that are recorded are slower.
    steps: Annotated[list[int], EXECUTION] = field(default_factory=list)
    """[first, last]: record these optimizer steps with torch.profiler into the run folder. Empty:
    none.
    """


@dataclass(frozen=True)
class Wandb:
    # All NEUTRAL: W&B is sent what metrics.jsonl holds, and decides nothing.
    mode: Annotated[str, NEUTRAL, one_of("auto", "online", "offline", "disabled")] = "auto"
    """auto (online when logged in, else offline; never a prompt), online, offline or disabled."""
    entity: Annotated[str | None, NEUTRAL] = None
    """Account or team. Unset: WANDB_ENTITY, else the default one of the login."""
    project: Annotated[str | None, NEUTRAL] = None
    """Project of the run. Unset: WANDB_PROJECT, else isobatch."""
    group: Annotated[str | None, NEUTRAL] = None
    """Group of the run. Unset: WANDB_RUN_GROUP, else the config's stem."""
    name: Annotated[str | None, NEUTRAL] = None
    """Display name. Unset: WANDB_NAME, else the run's name."""
    tags: Annotated[list[str], NEUTRAL] = field(default_factory=list)
    """Tags of the run, of 1 to 64 characters each. Empty: WANDB_TAGS, with commas between."""
    notes: Annotated[str | None, NEUTRAL] = None
    """A text about the run. Unset: WANDB_NOTES."""
    privacy: Annotated[bool, NEUTRAL] = False
    """Send no host name, command, user, or repository address; only config, versions and metrics.
    """
    log_model: Annotated[bool, NEUTRAL] = False
    """Also send the weights of a finished run (final/), as an artifact of type model. The run's end
    waits for the upload, for half an hour at most.
    """


@dataclass(frozen=True)
class Memory:
    # EXECUTION: what is computed again is the same, so the gradient is.
    activation_checkpointing: Annotated[bool | str, EXECUTION] = False
    """Keep the inputs of the model's blocks only, and compute what is inside them again in the
    backward pass: less memory, about a third more computation, the same gradient. true: the blocks
    are those that a Hugging Face model declares itself, else the items of the model's ModuleLists.
    A text names them: `layers.*`, `encoder.block?`.
    """
    limit_gib: Annotated[float | None, EXECUTION, POSITIVE] = None
    """What batch.micro=auto may use of each rank's memory. On a CPU it counts the tensors of a step
    that is tried. Unset: 0.92 of a GPU's memory, or half of what the host has free, shared by its
    ranks.
    """
    chunked_loss: Annotated[bool | int, EXECUTION, AT_LEAST_0] = False
    """Of a language model, keep the logits of so many tokens only (true: 1024), and compute them
    again in the backward pass: the same gradient, and a large vocabulary takes no memory. For
    task=causal_lm, with gpt and hf.
    """


@dataclass(frozen=True)
class Runtime:
    timeout_seconds: Annotated[int, NEUTRAL, AT_LEAST_1] = 1800
    """A run without progress for so long ends, reports where each rank stands, and keeps their
    stacks.
    """
    watch_launcher: Annotated[bool, EXECUTION] = True
    """Save and stop where the launcher of the ranks was killed (./launch.sh, torchrun, accelerate
    launch): nobody waits for them any more. A shell that ends is no launcher: `nohup python -m
    train.accumulate ... &` continues.
    """
    # MATHEMATICS: inputs of 10 bits make another curve.
    tf32: Annotated[bool, MATHEMATICS] = False
    """Let GPUs round the inputs of float32 matrix products to 10 bits of mantissa: faster, less
    exact.
    """
    deterministic: Annotated[bool, EXECUTION] = False
    """Use deterministic kernels only; an operation without one stops the run."""
    reduction: Annotated[str, EXECUTION, one_of("auto", "explicit")] = "auto"
    """How ranks add up their gradients. auto: during the last backward pass (DDP), or where a trial
    shows that a parameter may get no gradient, after it (explicit).
    """


@dataclass(frozen=True)
class Config:
    name: Annotated[str | None, NEUTRAL] = None
    """Name of the run. Unset: the config's stem and a short form of the overrides."""
    seed: Annotated[int, MATHEMATICS, SEED] = 0
    """Seed of the order of data, of the model's initialisation and of everything random in
    training; 0 or more.
    """
    output_dir: Annotated[str, NEUTRAL] = "runs"
    """Folder that holds the run folders."""
    # The long names are taken, too; load puts the short ones in their place.
    precision: Annotated[str, MATHEMATICS, one_of("fp32", "bf16", "fp16", "fp64", *PRECISIONS)] = (
        "fp32"
    )
    """fp32, bf16 or fp16 (autocast: parameters and gradients stay float32; fp16 on GPUs only) or
    fp64.
    """
    # MATHEMATICS: which steps are applied is part of the curve.
    on_nonfinite: Annotated[str, MATHEMATICS, one_of("skip", "stop")] = "skip"
    """A step whose gradient is not finite: skip it, or stop the run."""
    max_nonfinite_steps: Annotated[int, MATHEMATICS, AT_LEAST_1] = 10
    """With on_nonfinite=skip: stop after so many such steps in a row. Checked when a row is logged.
    """
    batch: Batch = field(default_factory=Batch)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    duration: Duration = field(default_factory=Duration)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)
    noise_scale: NoiseScale = field(default_factory=NoiseScale)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    ema: Ema = field(default_factory=Ema)
    profile: Profile = field(default_factory=Profile)
    memory: Memory = field(default_factory=Memory)
    wandb: Wandb = field(default_factory=Wandb)
    runtime: Runtime = field(default_factory=Runtime)
