"""data.normalize: the model gets (x - mean) / deviation of the rows that are trained on, wherever
it is called.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

import train
from tests.conftest import run_ranks
from tests.data.files import opened, pictures, write
from tests.helpers import Array, argv, distance, flat, record, rows
from train.accumulate import compute_gradient
from train.config import ConfigError, load
from train.data import DataError, normalized, open_datasets
from train.data.holdout import hold_out
from train.evaluate import evaluate
from train.main import main
from train.merge import merge
from train.models.mlp import MLP
from train.models.scaling import FILE, Scaling, of_images, read_scaling, scaling_of
from train.verify import main as verify

SIZE, HELD_OUT = 60, 0.25
NAMES = ("small", "large", "far", "same")


def table_of(shift: float = 0.0) -> tuple[Array, Array]:
    """(rows, labels): four columns of other sizes, the last of one value; what is held out is of a
    size of its own.
    """
    random = np.random.default_rng(3)
    table = random.normal(size=(SIZE, 4)) * [1e-3, 1e5, 1.0, 0.0] + [0.0, 3e5, 2007.0, 7.0] + shift
    table[hold_out(SIZE, HELD_OUT).held_out] *= 100
    return table, random.integers(0, 3, SIZE)


def columns(shift: float = 0.0) -> Dataset:
    table, labels = table_of(shift)
    return Dataset.from_dict({**dict(zip(NAMES, table.T, strict=True)), "label": labels})


SOURCE = "data.source=tests.data.test_normalize.columns"
OWN = (
    "data.columns={inputs: [small, large, far, same], labels: label}",
    f"data.eval_fraction={HELD_OUT}",
    "data.normalize=true",
    "model.args.inputs=4",
)
STEPS = ("duration={steps: 4}",)


def expected() -> tuple[Array, Array, Array, Array]:
    """(scaled inputs of all rows, labels, rows that are trained on, rows that are held out), by
    NumPy.
    """
    table, labels = table_of()
    holdout = hold_out(SIZE, HELD_OUT)
    own = table[holdout.train]
    deviation = own.std(axis=0)
    deviation[3] = 1.0  # one value
    return (table - own.mean(axis=0)) / deviation, labels, holdout.train, holdout.held_out


@pytest.mark.parametrize(
    ("world_size", "more"), [(1, ()), (1, ("data.preload=false", "data.workers=0")), (2, ())]
)
def test_the_gradient_is_that_of_the_scaled_rows(
    tmp_path: Path, world_size: int, more: tuple[str, ...]
) -> None:
    """Against plain PyTorch in float64; held-out rows, a hundred times as large, have no part in
    the numbers.
    """
    traces = run_ranks(
        world_size, record, argv(tmp_path, SOURCE, *OWN, *more, *STEPS, "batch.micro=3")
    )

    assert len(traces) == world_size
    inputs, labels, kept, held = expected()
    for step in range(1, 5):
        own = kept[np.concatenate([trace.ids[step - 1] for trace in traces])]
        module = MLP(4, [8], 3).double()
        weights = [p for p in module.parameters() if p.requires_grad]
        torch.nn.utils.vector_to_parameters(torch.from_numpy(traces[0].weights[step - 1]), weights)
        loss = cross_entropy(module(torch.from_numpy(inputs[own])), torch.from_numpy(labels[own]))
        wanted = flat(torch.autograd.grad(loss, weights))
        assert all(distance(trace.gradients[step], wanted) < 1e-12 for trace in traces)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(traces[0].weights[-1]), weights)
    held_loss = cross_entropy(
        module(torch.from_numpy(inputs[held])), torch.from_numpy(labels[held])
    ).item()
    assert rows(tmp_path, "eval/loss")[-1]["eval/loss"] == pytest.approx(held_loss, rel=1e-9)


def test_the_numbers_go_where_the_weights_go(tmp_path: Path) -> None:
    """train.load, train.evaluate, also on other data, the average of the weights, and a merged
    checkpoint.
    """
    path = tmp_path / "own.parquet"
    columns().to_parquet(path)
    words = argv(
        tmp_path, f"data.source={path}", *OWN, *STEPS, "ema.decay=0.5", "evaluate.best=eval/loss"
    )
    assert main(words, "accumulate", compute_gradient) == 0
    run = tmp_path / "run"
    in_run = rows(tmp_path, "eval/loss")[-1]

    merged = tmp_path / "merged"
    merge(run, merged)
    inputs, labels, _, _ = expected()
    raw = torch.from_numpy(table_of()[0])
    plain = MLP(4, [8], 3).double()
    plain.load_state_dict(train.load(run).state_dict())
    for module in (train.load(run), train.load(merged)):
        torch.testing.assert_close(
            module(raw), plain(torch.from_numpy(inputs)), rtol=1e-9, atol=1e-9
        )
    again = evaluate(run, [])
    assert again["loss"] == pytest.approx(in_run["eval/loss"], rel=1e-12)
    average = train.load(run, "ema")
    assert average(raw).isfinite().all()
    assert (run / "best" / "inputs.safetensors").is_file()

    # Other rows are scaled by the numbers of the run, and not by their own.
    other = tmp_path / "other.parquet"
    columns(shift=5.0).to_parquet(other)
    moved = evaluate(run, [f"data.source={other}", "data.eval_split=train"])
    loss = cross_entropy(
        train.load(run)(torch.from_numpy(table_of(5.0)[0])), torch.from_numpy(labels)
    )
    assert moved["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert verify(words) == 0


def test_a_run_that_resumes_keeps_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.parquet"
    columns().to_parquet(path)
    words = argv(tmp_path, f"data.source={path}", *OWN, "checkpoint={resume: auto, every_steps: 2}")
    assert main([*words, *STEPS, "name=whole"], "accumulate", compute_gradient) == 0
    assert main([*words, "duration={steps: 2}"], "accumulate", compute_gradient) == 0
    assert main([*words, *STEPS], "accumulate", compute_gradient) == 0
    assert flat(list(train.load(tmp_path / "run").parameters())).tolist() == (
        flat(list(train.load(tmp_path / "whole").parameters())).tolist()
    )
    before = numbers(tmp_path / "run")

    columns(shift=1.0).to_parquet(path)
    capsys.readouterr()
    assert main([*words, "duration={steps: 6}"], "accumulate", compute_gradient) == 2
    assert "data: '1 file of " in capsys.readouterr().err
    on = f"checkpoint.resume={tmp_path / 'run'}"
    assert main([*words, on, "duration={steps: 6}"], "accumulate", compute_gradient) == 0
    assert (
        "normalize the numbers that the weights were trained with are kept"
        in capsys.readouterr().out
    )
    assert numbers(tmp_path / "run") == before


def numbers(run: Path) -> list[list[float]]:
    scaling = scaling_of(train.load(run))
    assert scaling is not None
    return [scaling.mean.tolist(), scaling.deviation.tolist()]


def fitting(arguments: list[str]) -> list[float]:
    """Of each rank; rank 1 is kept from finding numbers of its own."""
    import os

    from train.data import normalize
    from train.run import build

    def never(*_: Any) -> Any:
        raise AssertionError("the numbers were found on rank 1 too")

    if os.environ["RANK"] == "1":
        normalize.fit = never
    run = build(load(arguments), "accumulate")
    scaling = scaling_of(run.learner.module)
    assert scaling is not None
    run.report.close("looked at", 0)
    return scaling.mean.tolist()


def test_one_rank_finds_the_numbers_for_all(tmp_path: Path) -> None:
    first, second = run_ranks(2, fitting, argv(tmp_path, SOURCE, *OWN))

    kept = hold_out(SIZE, HELD_OUT).train
    assert first == second == pytest.approx(table_of()[0][kept].mean(axis=0).tolist())


def entering(arguments: list[str]) -> list[float]:
    """Of the column `far`: what enters the first layer in training."""
    seen: list[torch.Tensor] = []

    def look(run: Any, _: Any) -> None:
        first = next(
            part for part in run.learner.module.modules() if isinstance(part, torch.nn.Linear)
        )
        first.register_forward_pre_hook(
            lambda _, args: seen.append(args[0][:, 2].double()) if first.training else None
        )

    record(arguments, prepare=look)
    return torch.cat(seen).tolist()


@pytest.mark.parametrize("more", [("precision=bf16",), ("precision=fp32", "model.dtype=bf16")])
def test_numbers_are_scaled_before_they_are_narrowed(tmp_path: Path, more: tuple[str, ...]) -> None:
    """2007 +- 1 in bf16 would be 2008 throughout."""
    [far] = run_ranks(1, entering, argv(tmp_path, SOURCE, *OWN, *STEPS, *more))

    assert len(set(far)) > 20
    assert np.std(far) == pytest.approx(1.0, abs=0.3)


def test_the_plan_states_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "own.csv", {"a": [1.0, 3.0], "b": [400, 400], "label": [0, 1]})
    words = argv(
        tmp_path,
        f"data.source={path}",
        "data.columns={inputs: [a, b], labels: label}",
        "model.args.inputs=2",
    )

    assert main([*words, "data.normalize=true", "--plan"], "accumulate", compute_gradient) == 0
    assert "of 2 rows that are trained on: a 2 +- 1, b 400 +- 1\n" in capsys.readouterr().out
    assert main([*words, "--plan"], "accumulate", compute_gradient) == 0
    assert "b is of about 400, a of about 2.24" in capsys.readouterr().out
    assert (
        main([*words, "duration.steps=1", "data.normalize=true"], "accumulate", compute_gradient)
        == 0
    )
    assert any(
        "a 2 +- 1" in note
        for note in json.loads((tmp_path / "run" / "plan.json").read_text())["notes"]
    )


def test_columns_of_like_size_are_not_spoken_of(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.csv", {"a": [1.0, 3.0], "b": [90, 100], "c": [0, 0], "label": [0, 1]}
    )

    notes = opened(tmp_path, path, "data.columns={inputs: [a, b, c], labels: label}").notes

    assert not any("scale" in note for note in notes)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data.streaming=true",), "data.normalize needs all rows before the first step"),
        (
            ("data.columns={inputs: word, labels: label}", "data.max_length=8"),
            "column 'word' holds text",
        ),
    ],
)
def test_what_has_no_numbers_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    path = write(tmp_path / "own.csv", {"a": [1.0, 3.0], "word": ["x", "y"], "label": [0, 1]})
    config = load(
        argv(
            tmp_path,
            f"data.source={path}",
            "data.columns={inputs: a, labels: label}",
            "data.normalize=true",
            *overrides,
        )
    ).config

    with pytest.raises(DataError, match=said):
        normalized(open_datasets(config, ("inputs", "labels")), config)


def test_images_have_a_key_of_their_own(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own")
    images = "data.columns={inputs: image, labels: label}"
    config = load(argv(tmp_path, f"data.source={own}", images, "data.normalize=true")).config

    with pytest.raises(DataError, match=r"holds images\. Set: data\.normalize=false 'data\.image="):
        normalized(open_datasets(config, ("inputs", "labels")), config)


def test_a_transform_scales_by_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.normalize: got true beside data\.transform"):
        load(argv(tmp_path, SOURCE, *OWN, "data.transform=tests.data.test_normalize.columns"))


def test_weights_without_their_numbers_are_seen(tmp_path: Path) -> None:
    assert main(argv(tmp_path, SOURCE, *OWN, *STEPS), "accumulate", compute_gradient) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "copy" / "final" / "inputs.safetensors").unlink()

    with pytest.raises(train.models.weights.NotFinished, match=r"inputs\.safetensors is not there"):
        train.load(tmp_path / "copy")


def test_weights_that_are_started_from_bring_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(argv(tmp_path, SOURCE, *OWN, *STEPS, "name=base"), "accumulate", compute_gradient) == 0
    )
    base, own = tmp_path / "base", f"model.init_from={tmp_path / 'base'}"
    other = tmp_path / "other.parquet"
    columns(shift=5.0).to_parquet(other)
    words = argv(tmp_path, f"data.source={other}", *OWN, *STEPS, own)
    capsys.readouterr()

    assert main(words, "accumulate", compute_gradient) == 0

    assert (
        "normalize the numbers that the weights were trained with are kept"
        in capsys.readouterr().out
    )
    assert numbers(tmp_path / "run") == numbers(base)
    assert main([*words, "data.normalize=false", "name=raw"], "accumulate", compute_gradient) == 2
    assert "Set: data.normalize=true" in capsys.readouterr().err


def test_numbers_are_those_of_the_checkpoint_and_not_of_the_config(tmp_path: Path) -> None:
    """A run that goes on without data.normalize leaves nothing that would scale its model."""
    words = argv(tmp_path, SOURCE, *OWN, "checkpoint={every_steps: 2, keep: 9}")
    run = tmp_path / "run"
    assert main([*words, "duration={steps: 2}"], "accumulate", compute_gradient) == 0
    of_run = numbers(run)
    on = (f"checkpoint.resume={run}", "data.normalize=false", "duration={steps: 4}")
    assert main([*words, *on], "accumulate", compute_gradient) == 0
    assert scaling_of(train.load(run)) is None

    for step in (2, 4):
        merge(run / "checkpoints" / f"step-{step:08d}", tmp_path / str(step))
    assert numbers(tmp_path / "2") == of_run
    assert scaling_of(train.load(tmp_path / "4")) is None
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("normalize: false", "normalize: true"))
    merge(run / "checkpoints" / "step-00000004", tmp_path / "told")
    assert not (tmp_path / "told" / "final" / "inputs.safetensors").exists()


def test_columns_of_yes_and_no() -> None:
    module = torch.nn.Identity()
    mean, deviation = torch.tensor([0.5, 0.25]).double(), torch.tensor([0.5, 0.125]).double()
    Scaling(mean, deviation, torch.float32).install(module)

    assert module(torch.tensor([[True, False], [False, True]])).tolist() == [
        [1.0, -2.0],
        [-1.0, 6.0],
    ]


def test_a_loaded_model_may_be_cast(tmp_path: Path) -> None:
    """The numbers follow the parameters: of train.load(...).double(), too."""
    module = torch.nn.Linear(2, 1)
    save_file(
        {"mean": torch.ones(2).double(), "deviation": torch.full((2,), 2.0).double()},
        tmp_path / FILE,
    )
    assert read_scaling(module, tmp_path / "model.safetensors")
    inputs = torch.tensor([[3.0, 5.0]])

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        expected = torch.nn.functional.linear(
            torch.tensor([[1.0, 2.0]], dtype=dtype), *module.to(dtype).parameters()
        )
        assert torch.equal(module(inputs), expected)


def test_numbers_of_the_config_are_no_state() -> None:
    """A run that goes on with another data.image.mean trains with that; what was fitted to data is
    kept.
    """
    before, now = (of_images([mean], [0.5], torch.float32) for mean in (0.25, 0.75))
    now.load_state_dict(before.state_dict())
    assert now.mean.item() == 0.75
    assert now.note is None


@pytest.mark.parametrize(("mode", "half"), [("L", "[0.5]"), ("RGB", "[0.5, 0.5, 0.5]")])
def test_what_is_proposed_for_images_has_a_number_for_each_channel(
    tmp_path: Path, mode: str, half: str
) -> None:
    own = pictures(tmp_path / "own")
    words = [
        f"data.source={own}",
        "data.columns={inputs: image, labels: label}",
        f"data.image.mode={mode}",
    ]
    config = load(argv(tmp_path, *words, "data.normalize=true")).config

    with pytest.raises(DataError) as refused:
        normalized(open_datasets(config, ("inputs", "labels")), config)

    assert f"'data.image={{mean: {half}, std: {half}}}'" in str(refused.value)
    load(argv(tmp_path, *words, f"data.image.mean={half}", f"data.image.std={half}"))


@pytest.mark.parametrize(
    ("labels", "advice"),
    [([0, None, 1], "'data.fill={\"y\": -100}'"), (["a", None, "b"], "leave it out of the data")],
)
def test_a_missing_label_is_not_filled_with_a_class(
    tmp_path: Path, labels: list[Any], advice: str
) -> None:
    pq.write_table(pa.table({"x": [0.0, 1.0, 2.0], "y": labels}), tmp_path / "own.parquet")
    config = load(
        argv(tmp_path, f"data.source={tmp_path}/own.parquet", "data.columns={inputs: x, labels: y}")
    ).config

    with pytest.raises(DataError) as refused:
        open_datasets(config, ("inputs", "labels"))

    assert advice in str(refused.value)
    assert "unknown" not in str(refused.value)
