"""What is trained: the sections on batch, data, model, task, optimizer, schedule and duration.

For what stands beside a field, see schema.py.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from train.config.annotations import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    EXECUTION,
    FRACTION,
    FRACTION_BELOW_1,
    MATHEMATICS,
    NEUTRAL,
    POSITIVE,
    one_of,
)


@dataclass(frozen=True)
class Batch:
    """State any two; the number of ranks comes from the launcher and the third follows.

    Only `effective` is MATHEMATICS: the curve hash takes the effective batch, or the schedule, as
    it follows from all of these keys. `micro` and `accumulation_steps` are NEUTRAL because
    comparisons go by the micro-batch that followed from them.
    """

    effective: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Samples per optimizer step, over all ranks."""
    effective_tokens: Annotated[int | None, EXECUTION, AT_LEAST_1] = None
    """In place of `effective`, where samples are blocks of tokens: a multiple of data.block_size.
    """
    schedule: Annotated[dict[int, int] | None, EXECUTION] = None
    """In place of `effective`: {samples seen: effective batch from there on}, such as {0: 64,
    20000: 128}. A stage begins with the first step that starts at or after its number of samples.
    Steps grow by accumulation: `micro: all` and accumulation_steps are those of the first stage.
    """
    schedule_tokens: Annotated[dict[int, int] | None, EXECUTION] = None
    """The same, where samples are blocks of tokens: {tokens seen: effective_tokens from there on}.
    """
    micro: Annotated[Any, NEUTRAL] = "all"
    """Samples that one rank puts through the model at once; `all`: a rank's full share (or that of
    a micro-step, where accumulation_steps is stated). A list has one number a rank, for machines of
    unequal memory. `auto`: tried before the first step, the smallest within 3 % of the fastest that
    fits in memory.
    """
    # EXECUTION: the same samples in the same steps; only who takes them differs.
    shares: Annotated[Any, EXECUTION] = "equal"
    """What each rank takes of a step's samples: equal; a list of weights, one a rank, such as [3,
    1] where the first is three times as fast; or measured, from the first steps. The step and its
    gradient stay the same.
    """
    accumulation_steps: Annotated[int | None, NEUTRAL, AT_LEAST_1] = None
    """Micro-batches of one rank per optimizer step."""
    micro_tokens: Annotated[int | None, EXECUTION, AT_LEAST_1] = None
    """In place of `micro` and `accumulation_steps`, for texts with data.max_length: tokens that one
    rank puts through the model at once, padding included. Texts of a step that are about equally
    long go together, cut to the longest.
    """
    sync: Annotated[str, EXECUTION, one_of("step", "micro")] = "step"
    """Under FSDP2, when the ranks add up their gradients: once per `step`, for which each keeps
    unsharded gradients between micro-steps, or at every `micro`-step, which keeps the rank's own
    part of them only.
    """
    on_oom: Annotated[str, EXECUTION, one_of("shrink", "stop")] = "shrink"
    """Where memory runs out in a step of the accumulation loop: `shrink` repeats it in smaller
    micro-batches, with the same gradient, and keeps these; or `stop`.
    """
    exact: Annotated[str, NEUTRAL, one_of("warn", "required", "ignore")] = "warn"
    """Where the gradient would not be exactly that of the one big batch: warn, ignore, or required
    (refuse, or stop before the update where an audit finds it).
    """
    audit_every_steps: Annotated[int, EXECUTION, AT_LEAST_0] = 1000
    """Optimizer steps between audits, which compute a step's gradient a second time, cut another
    way, and compare; the first three are at steps 1, 10 and 100. They leave no trace in the
    training. 0: none.
    """


@dataclass(frozen=True)
class ImageForm:
    """What images become when they are read: 8 bits a number, until they are on the device."""

    size: Annotated[Any, MATHEMATICS] = None
    """Stretched to so many pixels: a number for height and width, or [height, width]. Unset: as
    they are.
    """
    mode: Annotated[str | None, MATHEMATICS] = None
    """L (grey) or RGB, whatever they are stored as; what is transparent is laid on white. Unset: as
    they are.
    """
    mean: Annotated[list[float], MATHEMATICS] = field(default_factory=list)
    """Subtracted from what enters the model, of 0 to 1: a number for each channel. With `std`;
    neither: 0 to 1.
    """
    std: Annotated[list[float], MATHEMATICS] = field(default_factory=list)
    """By which the rest is divided, a number for each channel."""


@dataclass(frozen=True)
class Data:
    source: Annotated[str, MATHEMATICS] = "???"
    """A file (csv, tsv, json, jsonl, parquet, txt), a folder of such files or of images, a data set
    saved to disk, a built-in (`digits`), the dotted path of a function that returns a
    `datasets.Dataset`, or any name that `datasets.load_dataset` takes.
    """
    args: Annotated[dict[str, Any], MATHEMATICS] = field(default_factory=dict)
    """Keyword arguments of the source."""
    split: Annotated[str, MATHEMATICS] = "train"
    """The split to train on, where the source has several."""
    eval_split: Annotated[str | None, NEUTRAL] = None
    """The split to evaluate on. Unset: eval_fraction of the training split."""
    eval_fraction: Annotated[float, MATHEMATICS, FRACTION_BELOW_1] = 0.0
    """Share of the samples held out for evaluation, in [0, 1). The same samples for every seed."""
    columns: Annotated[dict[str, Any], MATHEMATICS] = field(default_factory=dict)
    """Which column is what: {name that the task asks for: name in the data, or a list of columns of
    numbers, which are put side by side}. Same names need no entry. Text under the name `labels`
    becomes numbers, its values sorted.
    """
    fill: Annotated[dict[str, Any], MATHEMATICS] = field(default_factory=dict)
    """What stands for a missing value: {column of the data: value}. Unset: a missing value is
    refused, with its row.
    """
    normalize: Annotated[bool, MATHEMATICS] = False
    """Scale each number under the name `inputs` by its mean and deviation over the training rows,
    as it enters the model: in evaluations and train.load too.
    """
    image: ImageForm = field(default_factory=ImageForm)
    """Size, mode and range of images."""
    block_size: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Tokens in a sample: join the texts of the column `text` (see columns) and cut them into
    blocks of so many. A document's first token is not predicted from the document before. Unset:
    samples are what the columns hold.
    """
    tokenizer: Annotated[str, MATHEMATICS] = "bytes"
    """What makes tokens of text: `bytes`, the dotted path of a class like those in
    train/data/tokenizers.py, or the folder of a tokenizer that transformers has saved, which also
    reads a column of text with data.max_length.
    """
    max_length: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Tokens of a text: longer ones are cut, shorter ones filled up with token 256. Unset: text is
    refused.
    """
    preload: Annotated[bool | None, EXECUTION] = None
    """Hold the samples in memory. Unset: what takes at most a quarter of the machine's, shared by
    its ranks, but not images with a transform. What is not held is read from the disk when it is
    needed. Blocks (block_size) are always held.
    """
    workers: Annotated[int, EXECUTION, AT_LEAST_0] = 2
    """Processes of each rank that read and transform what is not simply held in memory; 0: the rank
    itself.
    """
    transform: Annotated[str | None, MATHEMATICS] = None
    """Dotted path of a function (sample, generator) -> sample for training samples, columns by the
    task's names, images as float32 (channels, height, width) in [0, 1]. The generator is seeded by
    seed, epoch and sample.
    """
    eval_transform: Annotated[str | None, EXECUTION] = None
    """The same for samples to evaluate on. Unset: they stay as they are."""
    streaming: Annotated[bool, MATHEMATICS] = False
    """Read the samples as they come instead of loading them first, for data that does not fit. One
    rank of each machine reads all of them, and hands the others their own.
    """
    shuffle_buffer: Annotated[int, MATHEMATICS, AT_LEAST_0] = 1000
    """With streaming: samples (with block_size: documents) among which the next one is drawn; 0
    keeps the order of the source.
    """
    split_by_node: Annotated[bool, MATHEMATICS] = False
    """With streaming: each rank reads its own shards only. Faster, but the samples of a step then
    depend on the number of ranks, and a rank whose shards are small begins them again before the
    others.
    """
    overfit: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Repeat the first so many effective batches for ever: a model that cannot learn them by heart
    has a bug.
    """
    drop_tail: Annotated[bool, MATHEMATICS] = False
    """Skip the last samples of an epoch that do not fill an effective batch. They are trained by
    default.
    """


@dataclass(frozen=True)
class Model:
    target: Annotated[str, MATHEMATICS] = "???"
    """A model of train/models (`mlp`) or the dotted path of a class or function that returns a
    module.
    """
    args: Annotated[dict[str, Any], MATHEMATICS] = field(default_factory=dict)
    """Keyword arguments of the target."""
    dtype: Annotated[str | None, MATHEMATICS] = None
    """Of the parameters. Unset: float32, float64 under precision=fp64. bf16: parameters and the
    optimizer's state in bfloat16, while the gradients of a step are summed in float32; an update of
    less than 1/256 of a value is lost.
    """
    compile: Annotated[bool | str, EXECUTION] = False
    """Compile the model: true for PyTorch's default backend (inductor), or the name of another,
    such as aot_eager.
    """
    init_from: Annotated[str | None, MATHEMATICS] = None
    """Weights to start from: a run folder (its final weights) or a .safetensors file, with every
    parameter's name and shape. Unset: drawn from the seed.
    """
    freeze: Annotated[list[str], MATHEMATICS] = field(default_factory=list)
    """Parameters that are not trained: patterns over their names, such as `layers.0.*`."""


@dataclass(frozen=True)
class Task:
    target: Annotated[str, MATHEMATICS] = "???"
    """A task of train/tasks (`classification`) or the dotted path of a class like them."""
    args: Annotated[dict[str, Any], MATHEMATICS] = field(default_factory=dict)
    """Keyword arguments of the target."""


@dataclass(frozen=True)
class Group:
    """An item of optimizer.groups: parameters with a rate, or arguments, of their own."""

    match: str = ""
    """A pattern over the parameters' names, such as `embedding.*`. The first group that matches has
    a parameter.
    """
    lr_multiplier: float = 1.0
    """The group's rate, as a multiple of the rate of the step."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the optimizer that differ in this group."""


@dataclass(frozen=True)
class Optimizer:
    target: Annotated[str, MATHEMATICS] = "adamw"
    """An optimizer of torch.optim (`adamw`, `sgd`) or the dotted path of a class like them."""
    args: Annotated[dict[str, Any], MATHEMATICS] = field(default_factory=dict)
    """Keyword arguments of the target, except the learning rate."""
    lr: Annotated[float, MATHEMATICS, POSITIVE] = 1e-3
    """Peak learning rate at lr_reference_batch."""
    lr_scaling: Annotated[
        str, MATHEMATICS, one_of("none", "linear", "sqrt", "sde", "halflife", "noise")
    ] = "none"
    """How the optimizer's numbers, and ema.decay, follow the effective batch: none, linear (SGD),
    sqrt, sde, halflife (Adam), or noise, which bends where the batch comes near to noise_scale. The
    plan shows each number.
    """
    lr_reference_batch: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Effective batch, in samples, at which `lr` was tuned. Needed by every lr_scaling but none."""
    noise_scale: Annotated[float | None, MATHEMATICS, POSITIVE] = None
    """Gradient noise scale in samples, as a run has measured it (batch/noise_scale). Needed by
    lr_scaling=noise; beside another rule the plan warns where it contradicts that rule.
    """
    lr_on_schedule: Annotated[str, MATHEMATICS, one_of("rescale", "keep")] = "rescale"
    """What a stage of batch.schedule does to the optimizer's numbers: rescale them by lr_scaling to
    the batch of the stage, or keep those of the first stage, so that a larger batch means less
    noise.
    """
    max_grad_norm: Annotated[float | None, MATHEMATICS, ABOVE_0] = None
    """Largest norm of the gradient of a step; a longer one is scaled down to it. Unset: never."""
    no_decay: Annotated[list[str], MATHEMATICS] = field(default_factory=list)
    """Parameters without weight decay: patterns over their names, such as `*norm*` and `*.bias`."""
    groups: Annotated[list[Group], MATHEMATICS] = field(default_factory=list)
    """Parameters with a rate, or arguments, of their own: a list of {match, lr_multiplier, args}.
    """


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps, as a share of its peak."""

    name: Annotated[str, MATHEMATICS, one_of("constant", "linear", "cosine", "wsd")] = "constant"
    """constant, linear, cosine or wsd (constant, then a decay at the end): how the rate falls after
    warm-up.
    """
    warmup_steps: Annotated[int | None, MATHEMATICS, AT_LEAST_0] = None
    """Optimizer steps in which the rate rises to its peak. State at most one warmup_*."""
    warmup_fraction: Annotated[float | None, MATHEMATICS, FRACTION] = None
    """Warm-up as a share of all steps, in [0, 1]."""
    warmup_samples: Annotated[int | None, MATHEMATICS, AT_LEAST_0] = None
    """Warm-up in samples."""
    warmup_tokens: Annotated[int | None, MATHEMATICS, AT_LEAST_0] = None
    """Warm-up in tokens of blocks (data.block_size)."""
    final_fraction: Annotated[float, MATHEMATICS, FRACTION] = 0.0
    """Rate to which linear, cosine and wsd fall, as a share of the peak, in [0, 1]."""
    decay_fraction: Annotated[float, MATHEMATICS, FRACTION] = 0.2
    """wsd: the share of all steps, the last ones, in which the rate falls, in [0, 1]."""
    decay_shape: Annotated[str, MATHEMATICS, one_of("linear", "1-sqrt")] = "linear"
    """wsd: linear or 1-sqrt, how the rate falls there."""


@dataclass(frozen=True)
class Duration:
    """State exactly one."""

    steps: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Optimizer steps."""
    epochs: Annotated[float | None, MATHEMATICS, POSITIVE] = None
    """Passes over the data."""
    samples: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Samples, over all ranks; the step that reaches them is the last."""
    hours: Annotated[float | None, EXECUTION, POSITIVE] = None
    """Beside one of the others: stop after so many hours of this start, saved, to be resumed by the
    next (exit code 75).
    """
    tokens: Annotated[int | None, MATHEMATICS, AT_LEAST_1] = None
    """Tokens of blocks (data.block_size), over all ranks; the step that reaches them is the last.
    """


@dataclass(frozen=True)
class Ema:
    # EXECUTION: the average is only evaluated and saved. The training takes nothing from it.
    decay: Annotated[float | None, EXECUTION, FRACTION_BELOW_1] = None
    """Keep a moving average of the weights, evaluated and saved beside them: after each update it
    moves by 1 - decay of the way. Such as 0.999, at optimizer.lr_reference_batch where lr_scaling
    is on. Unset: none.
    """
