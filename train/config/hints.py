"""What an unknown key was probably meant to be: the nearest key, or ours for another trainer's."""

import difflib
from collections.abc import Container, Iterable

from train.config.keys import KEYS, SECTIONS, KeyPath, dotted, owner, parts
from train.config.merge import Layer
from train.config.problems import Problem, show

_MICRO = (
    "what one rank puts through the model at once; batch.effective counts over all ranks and "
    "micro-batches"
)
_EFFECTIVE = "samples per optimizer step over all ranks; what one rank takes at once is batch.micro"
_STEPS = "optimizer steps, not micro-batches"

# A table: no likeness leads from learning_rate to optimizer.lr.
_FOREIGN: tuple[tuple[str, str, str], ...] = (
    (
        "batch.micro",
        _MICRO,
        "per_device_train_batch_size per_gpu_train_batch_size local_batch_size "
        "train_micro_batch_size_per_gpu micro_batch_size device_train_microbatch_size "
        "device_batch_size",
    ),
    (
        "batch.effective",
        _EFFECTIVE,
        "batch_size train_batch_size global_batch_size global_train_batch_size "
        "total_batch_size effective_batch_size",
    ),
    (
        "batch.micro_tokens",
        "tokens that one rank puts through the model at once",
        "group_by_length max_tokens",
    ),
    (
        "batch.accumulation_steps",
        "",
        "gradient_accumulation_steps accumulate_grad_batches grad_accum_steps",
    ),
    ("optimizer.lr", "", "lr learning_rate base_lr max_lr"),
    ("optimizer.target", "", "optim optimizer_name"),
    (
        "optimizer.max_grad_norm",
        "",
        "max_grad_norm gradient_clip_val gradient_clipping grad_clip clip_grad_norm max_norm",
    ),
    ("optimizer.args.weight_decay", "", "weight_decay"),
    ("optimizer.args.momentum", "", "momentum"),
    ("optimizer.args.eps", "", "adam_epsilon"),
    (
        "optimizer.args.betas",
        "a pair, such as [0.9, 0.95]",
        "adam_beta1 adam_beta2 beta1 beta2 betas",
    ),
    (
        "schedule.name",
        "constant, linear, cosine or wsd",
        "lr_scheduler_type lr_scheduler scheduler decay_lr",
    ),
    ("schedule.warmup_steps", _STEPS, "warmup_steps warmup_iters num_warmup_steps"),
    ("schedule.warmup_fraction", "a share of all steps", "warmup_ratio t_warmup"),
    (
        "schedule.final_fraction",
        "a share of the peak rate, not a rate",
        "min_lr min_lr_factor alpha_f",
    ),
    ("duration.epochs", "", "num_train_epochs max_epochs num_epochs epochs"),
    (
        "duration.epochs",
        "`10ep` is duration.epochs=10, `100ba` is duration.steps=100",
        "max_duration",
    ),
    (
        "duration.steps",
        _STEPS,
        "max_steps max_iters max_train_steps training_steps num_training_steps",
    ),
    ("precision", "fp32, bf16, fp16 or fp64", "bf16 fp16 mixed_precision amp dtype"),
    ("model.compile", "true, or the name of a backend", "torch_compile compile_model compile"),
    (
        "memory.activation_checkpointing",
        "true, or a pattern of names of blocks",
        "gradient_checkpointing activation_checkpointing ac",
    ),
    (
        "memory.chunked_loss",
        "true, or so many tokens at a time",
        "use_liger_kernel num_output_chunks",
    ),
    ("runtime.tf32", "", "tf32 allow_tf32"),
    ("runtime.deterministic", "", "full_determinism use_deterministic_algorithms"),
    ("runtime.timeout_seconds", "", "ddp_timeout dist_timeout"),
    (
        "runtime.reduction",
        "auto finds out whether parameters may be left unused",
        "ddp_find_unused_parameters find_unused_parameters",
    ),
    ("log.every_steps", _STEPS, "logging_steps log_every_n_steps log_interval log_freq"),
    ("evaluate.every_steps", _STEPS, "eval_steps eval_interval val_check_interval"),
    ("evaluate.every_steps", "optimizer steps, not epochs", "check_val_every_n_epoch"),
    ("evaluate.at_start", "", "eval_on_start"),
    ("data.source", "", "dataset dataset_name dataset_path"),
    ("data.drop_tail", "the tail of an effective batch", "dataloader_drop_last drop_last"),
    ("task.args.label_smoothing", "", "label_smoothing label_smoothing_factor"),
    ("name", "", "run_name experiment_name"),
    ("output_dir", "", "out_dir default_root_dir save_folder dump_folder logging_dir"),
    ("data.overfit", "so many effective batches", "overfit_batches"),
    ("evaluate.best", "such as eval/accuracy", "metric_for_best_model"),
    ("checkpoint.resume", "auto or never", "resume_from_checkpoint"),
    ("checkpoint.every_steps", _STEPS, "save_steps save_interval checkpoint.interval"),
    ("checkpoint.keep", "", "save_total_limit keep_latest_k"),
    ("wandb.mode", "auto, online, offline or disabled", "report_to"),
    ("wandb.project", "", "wandb_project project_name"),
    ("seed", "", "random_seed data_seed seed_everything"),
)
"""(our key, what to know, names in HF Trainer, Lightning, Composer, torchtitan and others)"""

FOREIGN: dict[str, tuple[str, str]] = {
    name: (key, note) for key, note, names in _FOREIGN for name in names.split()
}
"""{name in another trainer: (our key, what to know)}"""


def find_unknown(layer: Layer, stated: Container[KeyPath]) -> list[Problem]:
    """The keys of a layer that do not exist; `stated` holds the keys of all layers."""
    problems = []
    for path, value in [*layer.values.items(), *layer.edits]:
        problem = _unknown(layer.name, path, value, stated)
        if problem is not None:
            problems.append(problem)
    return problems


def _unknown(
    where: str, path: KeyPath, value: object, stated: Container[KeyPath]
) -> Problem | None:
    key = dotted(path)
    # `model:` with nothing below it states nothing.
    is_empty_section = key in SECTIONS and value in (None, {})
    if owner(path) is not None or is_empty_section:
        return None
    if key in SECTIONS:
        keys = ", ".join(name for name in KEYS if name.startswith(f"{key}."))
        text = f"got {show(value)}; it is a section. Write one of its keys: {keys}"
        return Problem(where, key, text)
    text = f"got {show(value)}; there is no such key. {advice(key, value)}"
    # A key that is stated elsewhere was not meant by this one.
    near = tuple(name for name in nearest(key) if parts(name) not in stated)
    return Problem(where, key, text, near)


def nearest(key: str) -> tuple[str, ...]:
    """The keys that an unknown one may mean, the most likely first.

    That of another trainer's name; else those with the same last part; else the most alike.
    """
    # The table comes before likeness: `dtype` of other trainers is `precision` here, though a key
    # of ours ends in it.
    foreign = _foreign(key)
    if foreign is not None:
        return (foreign[0],)
    last = key.rpartition(".")[2]
    likeness = {name: _likeness(key, name) for name in KEYS}
    by_likeness = sorted(KEYS, key=lambda name: -likeness[name])
    same_last = [name for name in by_likeness if name.rpartition(".")[2] == last]
    if same_last:
        # `every_steps` is in several sections: only those whose section is alike, too.
        least = likeness[same_last[0]] - 0.16
        return tuple(name for name in same_last if likeness[name] > least)
    best = by_likeness[0]
    if likeness[best] >= 0.7:
        return (best,)
    # The last part alone: an unknown section makes the whole key unlike all others.
    by_last_part = {name.rpartition(".")[2]: name for name in KEYS}
    near = difflib.get_close_matches(last.lower(), by_last_part, n=1, cutoff=0.7)
    return tuple(by_last_part[part] for part in near)


def _likeness(key: str, name: str) -> float:
    return difflib.SequenceMatcher(None, key.lower(), name).ratio()


def advice(key: str, value: object) -> str:
    """One sentence on what to type for an unknown key."""
    foreign = _foreign(key)
    if foreign is not None:
        name, note = foreign
        return f"Here it is {name}: {note or f'write {name}={_typed(value)}'}"
    close = nearest(key)
    if close:
        return f"Did you mean {_either(close)}?"
    section, _, rest = key.partition(".")
    if f"{section}.args" in KEYS:
        return f"An argument of the target goes under args: {section}.args.{rest}"
    outside = [name for name in KEYS if "." not in name]
    return f"The sections are: {', '.join(SECTIONS)}; keys beside them: {', '.join(outside)}"


def _foreign(key: str) -> tuple[str, str] | None:
    # Other trainers take dashes on their command lines.
    plain = key.lower().replace("-", "_")
    return FOREIGN.get(plain) or FOREIGN.get(plain.rpartition(".")[2])


def _typed(value: object) -> str:
    return value if isinstance(value, str) else show(value)


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
