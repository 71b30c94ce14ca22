"""The typed defaults. A YAML file states only what differs; the docstring under a field says what it means."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Batch:
    """State any two; the ranks come from the launcher and the third follows."""

    effective: int | None = None
    """Samples per optimizer step, over all ranks."""
    micro: int | str = "all"
    """Samples that one rank puts through the model at once; `all`: the whole share of a rank (or of a micro-step,
    where accumulation_steps is stated)."""
    accumulation_steps: int | None = None
    """Micro-batches of one rank per optimizer step."""
    exact: str = "warn"
    """Where the gradient would not be exactly that of the one big batch: warn, ignore, or required (refuse)."""


@dataclass(frozen=True)
class Data:
    source: str = "???"
    """A file (csv, tsv, json, jsonl, parquet, txt), a folder of such files or of images, a data set saved to disk, a
    built-in (`digits`), the dotted path of a function that returns a `datasets.Dataset`, or any name that
    `datasets.load_dataset` takes."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the source."""
    split: str = "train"
    """The split to train on, where the source has several."""
    eval_split: str | None = None
    """The split to evaluate on. Unset: eval_fraction of the training split."""
    eval_fraction: float = 0.0
    """Share of the samples held out for evaluation, in [0, 1). The same samples for every seed."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Which column is what: {name that the task asks for: name in the data, or a list of columns of numbers, which are
    put side by side}. Same names need no entry. Text under the name `labels` becomes numbers, its values sorted."""
    tokenizer: str = "bytes"
    """What makes tokens of text: `bytes`, the 256 bytes of UTF-8."""
    max_length: int | None = None
    """Tokens of a text: longer ones are cut, shorter ones filled up with token 256. Unset: text is refused."""
    preload: bool | None = None
    """Hold the samples in memory. Unset: what takes at most a quarter of the machine's, shared by its ranks, but not
    images with a transform. What is not held is read from the disk when it is needed."""
    workers: int = 2
    """Processes of each rank that read and transform what is not simply held in memory; 0: the rank itself."""
    transform: str | None = None
    """Dotted path of a function (sample, generator) -> sample for training samples, columns by the task's names, images
    as float32 (channels, height, width) in [0, 1]. The generator is seeded by seed, epoch and sample."""
    eval_transform: str | None = None
    """The same for samples to evaluate on. Unset: they stay as they are."""
    streaming: bool = False
    """Read the samples as they come instead of loading them first, for data that does not fit. Every rank reads all of
    them and keeps its own."""
    shuffle_buffer: int = 1000
    """With streaming: samples among which the next one is drawn; 0 keeps the order of the source."""
    split_by_node: bool = False
    """With streaming: each rank reads its own shards only. Faster, but the samples of a step then depend on the number
    of ranks, and a rank whose shards are small begins them again before the others."""
    overfit: int | None = None
    """Repeat the first so many effective batches for ever: a model that cannot learn them by heart has a bug."""
    drop_tail: bool = False
    """Leave out the last samples of an epoch that do not fill an effective batch. They are trained by default."""


@dataclass(frozen=True)
class Model:
    target: str = "???"
    """A model of train/models (`mlp`) or the dotted path of a class or function that returns a module."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the target."""


@dataclass(frozen=True)
class Task:
    target: str = "???"
    """A task of train/tasks (`classification`) or the dotted path of a class like them."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the target."""


@dataclass(frozen=True)
class Optimizer:
    target: str = "adamw"
    """An optimizer of torch.optim (`adamw`, `sgd`) or the dotted path of a class like them."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the target, the learning rate excepted."""
    lr: float = 1e-3
    """Peak learning rate at lr_reference_batch."""
    lr_scaling: str = "none"
    """How the peak rate follows the effective batch: none, linear, sqrt, sde, halflife."""
    lr_reference_batch: int | None = None
    """Effective batch, in samples, at which `lr` was tuned. Needed by every lr_scaling but none."""
    max_grad_norm: float | None = None
    """Largest norm of the gradient of a step; a longer one is scaled down to it. Unset: never."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps, as a share of its peak."""

    name: str = "constant"
    """constant, linear or cosine: how the rate falls after warm-up."""
    warmup_steps: int | None = None
    """Optimizer steps in which the rate rises to its peak. State at most one warmup_*."""
    warmup_fraction: float | None = None
    """Warm-up as a share of all steps, in [0, 1]."""
    warmup_samples: int | None = None
    """Warm-up in samples."""
    final_fraction: float = 0.0
    """Rate to which linear and cosine fall, as a share of the peak, in [0, 1]."""


@dataclass(frozen=True)
class Duration:
    """State exactly one."""

    steps: int | None = None
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the data."""
    samples: int | None = None
    """Samples, over all ranks; the step that reaches them is the last."""
    hours: float | None = None
    """Beside one of the others: stop after so many hours of this start, saved, to be continued by the next (exit code
    75)."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluation also follows the last step. State at most one every_*."""

    every_steps: int | None = None
    """Optimizer steps between evaluations."""
    every_samples: int | None = None
    """Samples between evaluations; they take place at the end of the step that reaches them."""
    at_start: bool = False
    """Evaluate the untrained model too."""
    sets: dict[str, str] = field(default_factory=dict)
    """Further sets to evaluate on: {name: split of the data}."""
    best: str | None = None
    """Metric that tells the best evaluation, such as eval/accuracy: whether more is better is known for loss,
    accuracy, perplexity and their like; else write `max eval/mine` or `min eval/mine`."""


@dataclass(frozen=True)
class Log:
    every_steps: int = 10
    """Optimizer steps between rows of metrics.jsonl (and lines on the screen)."""


@dataclass(frozen=True)
class Checkpoint:
    every_steps: int = 1000
    """Optimizer steps between checkpoints. One is also made where training stops or ends."""
    keep: int = 2
    """Complete checkpoints that stay, the newest ones."""
    resume: str = "auto"
    """What a second start of the same name does: `auto` goes on from the newest checkpoint; `never` moves the old run
    folder to NAME.1 and starts over; a path (a checkpoint, or a run folder) goes on from there."""


@dataclass(frozen=True)
class Profile:
    steps: list[int] = field(default_factory=list)
    """[first, last]: record these optimizer steps with torch.profiler into the run folder. Empty: none."""


@dataclass(frozen=True)
class Wandb:
    mode: str = "auto"
    """auto (online when logged in, else offline; never a prompt), online, offline or disabled."""
    entity: str | None = None
    """Account or team. Unset: the default one of the login."""
    project: str = "isobatch"
    """Project of the run."""
    group: str | None = None
    """Group of the run. Unset: the config's stem."""
    name: str | None = None
    """Display name. Unset: the run's name."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""
    notes: str | None = None
    """A text about the run."""
    privacy: bool = False
    """Send no host name, command, user, or repository address; only config, versions and metrics."""


@dataclass(frozen=True)
class Runtime:
    timeout_seconds: int = 1800
    """How long a rank waits for the others before it gives up."""
    tf32: bool = False
    """Let GPUs round the inputs of float32 matrix products to 10 bits of mantissa: faster, less exact."""
    deterministic: bool = False
    """Use deterministic kernels only; an operation without one stops the run."""


@dataclass(frozen=True)
class Config:
    name: str | None = None
    """Name of the run. Unset: the config's stem and a short form of the overrides."""
    seed: int = 0
    """Seed of the order of data, of the model's initialisation and of everything random in training; 0 or more."""
    output_dir: str = "runs"
    """Folder that holds the run folders."""
    precision: str = "fp32"
    """fp32, bf16 (autocast: parameters and gradients stay float32) or fp64."""
    on_nonfinite: str = "skip"
    """A step whose gradient is not finite: skip it, or stop the run."""
    max_nonfinite_steps: int = 10
    """With on_nonfinite=skip: stop after so many such steps in a row. Looked at when a row is logged."""
    batch: Batch = field(default_factory=Batch)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    duration: Duration = field(default_factory=Duration)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    profile: Profile = field(default_factory=Profile)
    wandb: Wandb = field(default_factory=Wandb)
    runtime: Runtime = field(default_factory=Runtime)
