"""The typed defaults. A YAML file states only what differs; the docstring under a field says what
it means.
"""

from dataclasses import dataclass, field

from train.config.recipe import Batch, Data, Duration, Ema, Model, Optimizer, Schedule, Task


@dataclass(frozen=True)
class Evaluate:
    """Evaluation also follows the last step. State at most one every_*."""

    every_steps: int | None = None
    """Optimizer steps between evaluations."""
    every_samples: int | None = None
    """Samples between evaluations; they take place at the end of the step that reaches them."""
    every_tokens: int | None = None
    """Tokens of blocks (data.block_size) between evaluations, likewise."""
    at_start: bool = False
    """Evaluate the untrained model too."""
    sets: dict[str, str] = field(default_factory=dict)
    """Further sets to evaluate on: {name: split of the data}."""
    best: str | None = None
    """Metric that tells the best evaluation, such as eval/accuracy: whether more is better is known
    for loss, accuracy, perplexity and their like; else write `max eval/mine` or `min eval/mine`.
    """


@dataclass(frozen=True)
class Log:
    every_steps: int = 10
    """Optimizer steps between rows of metrics.jsonl (and lines on the screen)."""


@dataclass(frozen=True)
class NoiseScale:
    every_steps: int = 20
    """Optimizer steps between measurements of the gradient noise scale, which tells whether
    accumulation pays. Each reads every gradient once more, per micro-batch. 0: none.
    """


@dataclass(frozen=True)
class Checkpoint:
    every_steps: int = 1000
    """Optimizer steps between checkpoints. One is also made where training stops or ends."""
    keep: int = 2
    """Complete checkpoints that stay, the newest ones."""
    resume: str = "auto"
    """What a second start of the same name does: `auto` goes on from the newest checkpoint; `never`
    moves the old run folder to NAME.1 and starts over; a path (a checkpoint, or a run folder) goes
    on from there.
    """


@dataclass(frozen=True)
class Profile:
    steps: list[int] = field(default_factory=list)
    """[first, last]: record these optimizer steps with torch.profiler into the run folder. Empty:
    none.
    """


@dataclass(frozen=True)
class Wandb:
    mode: str = "auto"
    """auto (online when logged in, else offline; never a prompt), online, offline or disabled."""
    entity: str | None = None
    """Account or team. Unset: WANDB_ENTITY, else the default one of the login."""
    project: str | None = None
    """Project of the run. Unset: WANDB_PROJECT, else isobatch."""
    group: str | None = None
    """Group of the run. Unset: WANDB_RUN_GROUP, else the config's stem."""
    name: str | None = None
    """Display name. Unset: WANDB_NAME, else the run's name."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run, of 1 to 64 characters each. Empty: WANDB_TAGS, with commas between."""
    notes: str | None = None
    """A text about the run. Unset: WANDB_NOTES."""
    privacy: bool = False
    """Send no host name, command, user, or repository address; only config, versions and metrics.
    """
    log_model: bool = False
    """Send the weights of a finished run (final/) too, as an artifact of type model. The end of the
    run waits for the upload, for half an hour at most.
    """


@dataclass(frozen=True)
class Memory:
    activation_checkpointing: bool | str = False
    """Keep the inputs of the model's blocks only, and compute what is inside them again in the
    backward pass: less memory, about a third more computation, the same gradient. true: the blocks
    are those that a Hugging Face model declares itself, else the items of the model's ModuleLists.
    A text names them: `layers.*`, `encoder.block?`.
    """
    limit_gib: float | None = None
    """What batch.micro=auto may use of each rank's memory. On a CPU it counts the tensors of a step
    that is tried. Unset: 0.92 of a GPU's memory, or half of what the host has free, shared by its
    ranks.
    """
    chunked_loss: bool | int = False
    """Of a language model, keep the logits of so many tokens only (true: 1024), and compute them
    again in the backward pass: the same gradient, and a large vocabulary takes no memory. For
    task=causal_lm, with gpt and hf.
    """


@dataclass(frozen=True)
class Runtime:
    timeout_seconds: int = 1800
    """A run in which nothing has moved for so long ends, says where each rank stands, and keeps
    their stacks.
    """
    watch_launcher: bool = True
    """Stop and save where the launcher of the ranks was killed (./launch.sh, torchrun, accelerate
    launch): nobody waits for them any more. A shell that ends is no launcher: `nohup python -m
    train.accumulate ... &` goes on.
    """
    tf32: bool = False
    """Let GPUs round the inputs of float32 matrix products to 10 bits of mantissa: faster, less
    exact.
    """
    deterministic: bool = False
    """Use deterministic kernels only; an operation without one stops the run."""
    reduction: str = "auto"
    """How ranks add up their gradients. auto: during the last backward pass (DDP), or where a trial
    shows that a parameter may get no gradient, after it (explicit).
    """


@dataclass(frozen=True)
class Config:
    name: str | None = None
    """Name of the run. Unset: the config's stem and a short form of the overrides."""
    seed: int = 0
    """Seed of the order of data, of the model's initialisation and of everything random in
    training; 0 or more.
    """
    output_dir: str = "runs"
    """Folder that holds the run folders."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast: parameters and gradients stay float32; fp16 on GPUs only) or
    fp64.
    """
    on_nonfinite: str = "skip"
    """A step whose gradient is not finite: skip it, or stop the run."""
    max_nonfinite_steps: int = 10
    """With on_nonfinite=skip: stop after so many such steps in a row. Looked at when a row is
    logged.
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
