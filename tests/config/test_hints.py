"""Unknown keys: the nearest of ours, also for the names of other trainers."""

import pytest

from train.config.hints import FOREIGN, find_unknown, nearest
from train.config.keys import TYPES, owner, parts
from train.config.merge import Layer, flatten
from train.config.problems import Problem


def unknown(values: dict[str, object]) -> list[Problem]:
    layer = Layer("x.yaml", flatten(values))
    return find_unknown(layer, layer.values)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_name_leads_to_a_key_that_exists(name: str) -> None:
    key, _ = FOREIGN[name]
    assert owner(parts(key)) is not None
    assert name not in TYPES
    [problem] = unknown({name: 1})
    assert f"Here it is {key}" in problem.text


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("gradient_accumulation_steps", "batch.accumulation_steps"),
        ("accumulate_grad_batches", "batch.accumulation_steps"),
        ("per_device_train_batch_size", "batch.micro"),
        ("device_train_microbatch_size", "batch.micro"),
        ("global_batch_size", "batch.effective"),
        ("train_batch_size", "batch.effective"),
        ("batch_size", "batch.effective"),
        ("learning_rate", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("max_grad_norm", "optimizer.max_grad_norm"),
        ("gradient_clip_val", "optimizer.max_grad_norm"),
        ("warmup_ratio", "schedule.warmup_fraction"),
        ("warmup_steps", "schedule.warmup_steps"),
        ("num_train_epochs", "duration.epochs"),
        ("max_epochs", "duration.epochs"),
        ("max_steps", "duration.steps"),
        ("max_duration", "duration.epochs"),
        ("lr_scheduler_type", "schedule.name"),
        ("weight_decay", "optimizer.args.weight_decay"),
        ("bf16", "precision"),
        ("mixed_precision", "precision"),
        ("logging_steps", "log.every_steps"),
        ("log_every_n_steps", "log.every_steps"),
        ("eval_steps", "evaluate.every_steps"),
        ("val_check_interval", "evaluate.every_steps"),
        ("optim", "optimizer.target"),
        ("adam_beta2", "optimizer.args.betas"),
        ("run_name", "name"),
        ("trainer.max_epochs", "duration.epochs"),
        ("optimizer.weight_decay", "optimizer.args.weight_decay"),
        ("--batch-size".lstrip("-"), "batch.effective"),
    ],
)
def test_names_of_other_trainers_are_known(name: str, key: str) -> None:
    assert nearest(name) == (key,)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("batch.efective", {"batch.effective"}),
        ("optimzer.target", {"optimizer.target"}),
        ("modle.target", {"model.target"}),
        ("micro", {"batch.micro"}),
        ("opt.lr", {"optimizer.lr"}),
        ("max_nonfinite_step", {"max_nonfinite_steps"}),
        ("log.every_samples", {"evaluate.every_samples"}),
        ("target", {"model.target", "task.target", "optimizer.target"}),
        ("warmup_sample", {"schedule.warmup_samples"}),
        ("zzz", set()),
    ],
)
def test_the_nearest_key_of_the_whole_config_is_found(name: str, keys: set[str]) -> None:
    assert set(nearest(name)) <= keys if name == "target" else set(nearest(name)) == keys


def test_an_unknown_key_names_file_key_and_value() -> None:
    [problem] = unknown({"batch": {"efective": 100}})
    assert (
        str(problem)
        == "x.yaml: batch.efective: got 100; there is no such key. Did you mean batch.effective?"
    )


def test_the_line_to_type_holds_the_value_where_the_meaning_is_the_same() -> None:
    [problem] = unknown({"learning_rate": 0.1})
    assert problem.text.endswith("write optimizer.lr=0.1")
    [problem] = unknown({"per_device_train_batch_size": 8})
    assert "over all ranks" in problem.text
    assert "=8" not in problem.text


def test_an_argument_beside_args_is_told_to_go_under_args() -> None:
    [problem] = unknown({"model": {"hidden_sizes": 3}})
    assert "model.args.hidden_sizes" in problem.text


def test_a_key_like_nothing_gets_the_list_of_sections() -> None:
    [problem] = unknown({"zzz": 3})
    assert "The sections are: batch, data" in problem.text


@pytest.mark.parametrize("value", [3, "digits", [1]])
def test_a_section_with_a_plain_value_lists_its_keys(value: object) -> None:
    [problem] = unknown({"data": value})
    assert "it is a section" in problem.text
    assert "data.source" in problem.text


def test_null_does_not_hide_an_unknown_key() -> None:
    assert [problem.key for problem in unknown({"optimizer": {"lrr": None}})] == ["optimizer.lrr"]


def test_what_lies_below_args_is_not_ours_to_know() -> None:
    assert (
        unknown({"model": {"args": {"lr": 1, "deep": {"batch_size": 2}}}, "batch": None, "log": {}})
        == []
    )
