"""Weights to start from, frozen parameters, groups with a rate of their own, the average of the
weights.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from tests.helpers import Trace, argv, record, rows
from train.accumulate import compute_gradient
from train.config import ConfigError, load
from train.main import main
from train.models.mlp import MLP
from train.run import Run, build


def start(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


def weights(folder: Path, name: str = "run", file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "final" / f"{file}.safetensors")


@pytest.mark.parametrize(
    "kind", ["{0}/first", "{0}/first/final", "{0}/first/final/model.safetensors"]
)
def test_starts_from_the_weights_of_another_run(tmp_path: Path, kind: str) -> None:
    assert start(argv(tmp_path, "name=first")) == 0

    trace = record(
        argv(tmp_path, f"model.init_from={kind.format(tmp_path)}", "seed=5", "duration={steps: 1}")
    )

    expected = torch.cat(
        [tensor.flatten() for _, tensor in sorted(weights(tmp_path, "first").items())]
    )
    assert sorted(trace.weights[0].tolist()) == sorted(expected.tolist())


def curve(folder: Path, name: str) -> str:
    plan: dict[str, Any] = json.loads((folder / name / "plan.json").read_text())
    return str(plan["curve_hash"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_other_weights_are_another_curve_wherever_they_lie(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    save_file(
        {"layers.0.weight": torch.ones(3, 6), "layers.0.bias": torch.ones(3)},
        tmp_path / "one.safetensors",
    )
    save_file(
        {"layers.0.weight": torch.ones(3, 6), "layers.0.bias": torch.zeros(3)},
        tmp_path / "two.safetensors",
    )
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "copy.safetensors")

    for name in ("one", "two", "copy"):
        model = ("model.args.hidden=[]", f"model.init_from={tmp_path}/{name}.safetensors")
        codes = run_ranks(
            world_size, start, argv(tmp_path, *model, f"name={name}", "duration={steps: 1}")
        )
        assert codes == [0] * world_size

    assert curve(tmp_path, "one") == curve(tmp_path, "copy") != curve(tmp_path, "two")


def test_other_weights_under_the_name_of_a_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(argv(tmp_path, "name=first")) == 0
    given = argv(tmp_path, f"model.init_from={tmp_path}/first", "checkpoint.resume=auto")
    assert start(given) == 0
    assert start(argv(tmp_path, "name=first", "seed=1")) == 0

    assert start(given) == 2
    assert "model.init_from: 'sha256 " in capsys.readouterr().err


def test_the_run_itself_is_loaded_without_them(tmp_path: Path) -> None:
    assert start(argv(tmp_path, "name=first")) == 0
    assert start(argv(tmp_path, f"model.init_from={tmp_path}/first")) == 0
    (tmp_path / "first").rename(tmp_path / "elsewhere")

    assert train.load(tmp_path / "run", trust=True) is not None


class Meaning(MLP):
    """An argument of the user's own, by the name that others give to a download."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__(inputs=6, hidden=[4], outputs=3)
        self.pretrained = pretrained


def test_a_model_is_loaded_with_the_arguments_it_was_trained_with(tmp_path: Path) -> None:
    model = f"model={{target: {__name__}.Meaning, args: {{pretrained: true}}}}"

    assert start(argv(tmp_path, model, "duration={steps: 1}")) == 0
    assert train.load(tmp_path / "run", trust=True).pretrained is True


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"layers.9.bias": torch.zeros(2)}, ["layers.9.bias is there, but not in the model"]),
        ({"layers.0.bias": None}, ["layers.0.bias is missing there"]),
        (
            {"layers.0.bias": torch.zeros(3)},
            ["layers.0.bias has shape (3,) there, (8,) in the model"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], messages: list[str]
) -> None:
    assert start(argv(tmp_path, "name=first")) == 0
    changed = {
        name: tensor
        for name, tensor in (weights(tmp_path, "first") | change).items()
        if tensor is not None
    }
    save_file(changed, tmp_path / "changed.safetensors")

    assert start(argv(tmp_path, f"model.init_from={tmp_path}/changed.safetensors")) == 2

    stderr = capsys.readouterr().err
    assert all(message in stderr for message in messages)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 40)
    for path, message in (
        ("nowhere", "is not there"),
        (".", "has no final/"),
        ("torn.safetensors", "no whole"),
    ):
        assert start(argv(tmp_path, f"model.init_from={tmp_path}/{path}")) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_frozen_is_not_trained(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    run_ranks(world_size, start, argv(tmp_path, "model.freeze=['layers.0.*']", "name=frozen"))
    start(argv(tmp_path, "duration={steps: 1}", "optimizer.lr=1e-30", "name=untrained"))

    before, after = weights(tmp_path, "untrained"), weights(tmp_path, "frozen")
    assert {name for name in after if torch.equal(before[name], after[name])} == {
        "layers.0.weight",
        "layers.0.bias",
    }


@pytest.mark.parametrize(
    "override",
    [
        "model.freeze=[layer.0.weight]",
        "optimizer.no_decay=[layer.0.weight]",
        "optimizer.groups=[{match: layer.0.weight}]",
    ],
)
def test_a_pattern_that_matches_nothing_names_near_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert start(argv(tmp_path, override)) == 2

    stderr = capsys.readouterr().err
    assert "'layer.0.weight' matches no parameter. Near names, of 4: layers.0.weight" in stderr


def test_a_part_of_a_name_is_no_pattern_but_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(argv(tmp_path, "model.freeze=[bias]")) == 2
    assert "try '*bias*'" in capsys.readouterr().err


def test_nothing_left_to_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(argv(tmp_path, "model.freeze=['*']")) == 2
    assert "leaves no parameter to train" in capsys.readouterr().err


def built(*arguments: Any) -> Run:
    run = build(load(argv(*arguments)), "accumulate")
    run.report.close("measured", 0)
    return run


def test_groups_have_their_own_arguments(tmp_path: Path) -> None:
    groups = (
        "[{match: '*.0.*', lr_multiplier: 0.5, args: {weight_decay: 0.3}}, "
        "{match: '*', args: {momentum: 0.9}}]"
    )
    given = (
        f"optimizer.groups={groups}",
        "optimizer.no_decay=['*.bias']",
        "optimizer.args.weight_decay=0.1",
    )

    run = built(tmp_path, *given)

    names = {id(p): name for name, p in run.learner.module.named_parameters()}
    found = {
        names[id(p)]: (group["lr_multiplier"], group["weight_decay"], group["momentum"])
        for group in run.learner.optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        "layers.0.weight": (0.5, 0.3, 0),
        "layers.0.bias": (0.5, 0.0, 0),
        "layers.2.weight": (1.0, 0.1, 0.9),
        "layers.2.bias": (1.0, 0.0, 0.9),
    }


def test_a_group_moves_at_its_own_rate(tmp_path: Path) -> None:
    """SGD: a step is rate times gradient."""
    rates = "optimizer.groups=[{match: 'layers.0.*', lr_multiplier: 0.25}]"
    moved = {}
    for name, given in (("plain", ()), ("grouped", (rates,))):
        trace: Trace = record(
            argv(tmp_path, *given, f"name={name}", "duration={steps: 1}", "optimizer.lr=1")
        )
        run = built(tmp_path, *given, f"name={name}-again")
        sizes = {n: p.numel() for n, p in run.learner.module.named_parameters()}
        pieces = torch.from_numpy(trace.weights[1] - trace.weights[0]).split(list(sizes.values()))
        moved[name] = dict(zip(sizes, pieces, strict=True))

    for name, step in moved["plain"].items():
        factor = 0.25 if name.startswith("layers.0") else 1.0
        assert torch.allclose(moved["grouped"][name], factor * step, rtol=1e-12, atol=1e-15)


def test_arguments_of_groups_follow_the_batch(tmp_path: Path) -> None:
    """A group's own numbers are scaled by the rule that scales the others."""
    groups = "optimizer={target: adamw, groups: [{match: '*.bias', args: {weight_decay: 0.5}}]}"
    run = built(tmp_path, groups, "optimizer.lr_scaling=sde", "optimizer.lr_reference_batch=2")

    decays = sorted(group["weight_decay"] for group in run.learner.optimizer.param_groups)
    assert decays == pytest.approx([0.02, 1.0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.groups=[{match: a, args: {weight_dcay: 1}}]",
            "takes no argument 'weight_dcay'; did you mean",
        ),
        ("optimizer.groups=[{match: a, args: {lr: 1}}]", "is given 'lr' by Isobatch itself"),
        ("optimizer.groups=[{match: a, lr_mult: 1}]", "lr_multiplier"),
        ("optimizer.groups=[{lr_multiplier: 1}]", "Add match:"),
        ("optimizer.groups=[{match: a, lr_multiplier: -1}]", "it must be 0 or more"),
        ("optimizer={target: rprop, no_decay: [a]}", "takes no argument 'weight_decay'"),
    ],
)
def test_groups_that_cannot_be_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(argv(tmp_path, override))

    assert message in str(refused.value)


def average(trace: Trace, decay: float, applied: list[int]) -> torch.Tensor:
    """The definition, from the weights after each step that was applied."""
    after = [torch.from_numpy(trace.weights[k]) for k in applied]
    mean = after[0]
    for current in after[1:]:
        mean = decay * mean + (1 - decay) * current
    return mean


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("target", ["adamw", "sgd"])
def test_the_average_of_the_weights(
    run_ranks: Any, tmp_path: Path, world_size: int, target: str
) -> None:
    """One step is not applied (a NaN in its data): it does not move the average."""
    given = (
        "ema.decay=0.8",
        f"optimizer={{target: {target}, lr: 0.1}}",
        "data.args.nan=[26]",
        "batch.micro=2",
    )
    trace = run_ranks(1, record, argv(tmp_path, *given, "name=watched"))[0]

    run_ranks(world_size, start, argv(tmp_path, *given))

    found = weights(tmp_path, file="ema")
    order = [name for name, _ in train.load(tmp_path / "run", trust=True).named_parameters()]
    ours = torch.cat([found[name].flatten() for name in order])
    assert trace.skipped_steps == 1
    assert torch.allclose(ours, average(trace, 0.8, applied=[1, 2, 3, 5]), rtol=1e-10, atol=1e-14)


def test_the_average_is_evaluated_and_changes_nothing_else(tmp_path: Path) -> None:
    given = ("data.eval_fraction=0.25", "duration={epochs: 2}")
    assert start(argv(tmp_path, *given, "name=without")) == 0
    assert start(argv(tmp_path, *given, "name=with", "ema.decay=0.9")) == 0

    one, other = (rows(tmp_path, "eval/loss", name)[-1] for name in ("without", "with"))
    assert one["eval/loss"] == other["eval/loss"]
    assert other["eval/ema/loss"] != other["eval/loss"]
    assert torch.equal(
        *(weights(tmp_path, name)["layers.0.weight"] for name in ("without", "with"))
    )
    ema = train.load(tmp_path / "with", "ema", trust=True).state_dict()
    assert not torch.equal(ema["layers.0.weight"], weights(tmp_path, "with")["layers.0.weight"])


def test_sets_and_metrics_with_samples_in_their_names_are_averaged_too(tmp_path: Path) -> None:
    assert start(argv(tmp_path, "ema.decay=0.9", "evaluate.sets={few_samples: train}")) == 0

    row = rows(tmp_path, "eval/few_samples/loss")[-1]
    assert {"eval/ema/few_samples/loss", "eval/ema/few_samples/accuracy"} <= row.keys()
    assert "eval/ema/few_samples/samples" not in row


def test_the_average_can_be_put_down_and_taken_up(tmp_path: Path) -> None:
    from train.evaluation.ema import Ema

    run = built(tmp_path, "name=one")
    first = Ema(run.learner, 0.5)
    for p in run.learner.parameters:
        p.grad = torch.ones_like(p)
    run.learner.optimizer.step()
    state = {name: value.clone() for name, value in first.state_dict().items()}
    second = Ema(built(tmp_path, "name=two", "seed=9").learner, 0.5)

    second.load_state_dict(state)

    for ours, expected in zip(second.module.parameters(), first.module.parameters(), strict=True):
        assert torch.equal(ours, expected)
