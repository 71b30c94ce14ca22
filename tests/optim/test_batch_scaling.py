"""What a rule makes of an optimizer's numbers, by hand; where it does not hold is told."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import argv, record
from train.config import ConfigError, load
from train.config.recipe import Optimizer as OptimizerConfig
from train.metrics.scaling_regime import Regime
from train.optim.batch_scaling import RULES, Change, scale
from train.optim.optimizer import change_of, scaled_numbers
from train.optim.regimes import hints
from train.plan.make import show_plan

ARGS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
GAIN = (1 + 1000 / 64) / (1 + 1000 / 256)


def change(batch: int = 256, reference: int = 64, **facts: Any) -> Change:
    return Change(batch=batch, reference=reference, **facts)


@pytest.mark.parametrize(
    ("rule", "lr", "args"),
    [
        ("none", 1e-3, ARGS),
        ("linear", 4e-3, ARGS),
        ("sqrt", 2e-3, {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.2}),
        ("sde", 2e-3, {"betas": (0.9**4, 0.999**4), "eps": 0.5e-8, "weight_decay": 0.2}),
        ("halflife", 1e-3, {"betas": (0.9, 0.999**4), "eps": 1e-8, "weight_decay": 0.4}),
        (
            "noise",
            1e-3 * GAIN**0.5,
            {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.4 / GAIN**0.5},
        ),
    ],
)
def test_at_four_times_the_reference(rule: str, lr: float, args: dict[str, object]) -> None:
    scaled = scale(rule, 1e-3, ARGS, change(noise_scale=1000.0))

    assert scaled.lr == pytest.approx(lr, rel=1e-15)
    assert scaled.args.keys() == args.keys()
    for name, value in args.items():
        assert scaled.args[name] == pytest.approx(value, rel=1e-15), name
    assert 0.99**scaled.ema_power == pytest.approx(0.99 if rule == "none" else 0.99**4)


@pytest.mark.parametrize("rule", ["sqrt", "sde", "halflife"])
def test_what_has_not_the_form_of_adams_is_kept(rule: str) -> None:
    adan = {"betas": (0.98, 0.92, 0.99), "eps": None, "weight_decay": 0.0}
    config = OptimizerConfig(target="adafactor", lr=0.01, lr_scaling=rule, lr_reference_batch=8)

    scaled, adafactor = scale(rule, 1e-3, adan, change()), scaled_numbers(config, 32)

    assert scaled.args == adan
    assert {row.name: row.how for row in scaled.rows if row.name != "lr"} == dict.fromkeys(
        adan, "kept"
    )
    assert "eps" not in adafactor.args  # its own default stays
    assert adafactor.lr == pytest.approx(0.01 if rule == "halflife" else 0.02)


@pytest.mark.parametrize("rule", RULES)
@given(batch=st.integers(1, 10_000), reference=st.integers(1, 10_000), noise=st.floats(1, 1e6))
def test_there_and_back_is_where_it_started(
    rule: str, batch: int, reference: int, noise: float
) -> None:
    # ** 10,000 stays above underflow
    args = {"betas": (0.999, 0.999999), "eps": 1e-8, "weight_decay": 0.1}
    there = scale(rule, 1e-3, args, change(batch, reference, noise_scale=noise))

    back = scale(rule, there.lr, there.args, change(reference, batch, noise_scale=noise))

    assert back.lr == pytest.approx(1e-3, rel=1e-12)
    for name, value in args.items():
        assert back.args[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize(("is_adaptive", "limit"), [(False, "linear"), (True, "sqrt")])
@given(batch=st.integers(1, 10_000), reference=st.integers(1, 10_000))
def test_noise_is_the_old_rule_under_much_noise_and_none_without(
    is_adaptive: bool, limit: str, batch: int, reference: int
) -> None:
    def lr(rule: str, noise: float) -> float:
        return scale(
            rule, 1.0, {}, change(batch, reference, noise_scale=noise, is_adaptive=is_adaptive)
        ).lr

    assert lr("noise", 1e12) == pytest.approx(lr(limit, 1e12), rel=1e-6)
    assert lr("noise", 1e-6) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("rule", ["linear", "sqrt", "noise"])
def test_what_a_sample_does_to_a_decoupled_decay_stays(rule: str) -> None:
    before, after = 0.001 * 0.1 / 64, scale(rule, 0.001, ARGS, change(noise_scale=500.0))

    assert after.lr * after.args["weight_decay"] / 256 == pytest.approx(before, rel=1e-14)
    coupled = scale(rule, 0.001, ARGS, change(noise_scale=500.0, is_decoupled=False))
    assert coupled.args["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("target", "args", "is_adaptive", "is_decoupled"),
    [
        ("sgd", {}, False, False),
        ("adam", {}, True, False),
        ("adam", {"decoupled_weight_decay": True}, True, True),
        ("adamw", {}, True, True),
        ("rmsprop", {}, True, False),
        ("adafactor", {}, True, True),
    ],
)
def test_what_an_optimizer_is(
    target: str, args: dict[str, Any], is_adaptive: bool, is_decoupled: bool
) -> None:
    found = change_of(OptimizerConfig(target=target, args=args, lr_reference_batch=8), 32)

    assert found is not None
    assert (found.is_adaptive, found.is_decoupled) == (is_adaptive, is_decoupled)
    # torch itself: the gradient is 0, so that a coupled decay is all that there is.
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = getattr(torch.optim, type_name(target))(
        [parameter], lr=0.1, weight_decay=0.5, **args
    )
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (parameter.item() == pytest.approx(0.95)) == (is_decoupled or target == "sgd")


def type_name(target: str) -> str:
    return {name.lower(): name for name in dir(torch.optim)}[target]


@pytest.mark.parametrize(
    ("rule", "given"), [("linear", change(64, 64)), ("sde", None), ("none", change())]
)
def test_nothing_to_scale(rule: str, given: Change | None) -> None:
    scaled = scale(rule, 1e-3, ARGS, given)

    assert (scaled.lr, scaled.args, scaled.rows, scaled.ema_power) == (1e-3, ARGS, (), 1.0)


def test_a_number_that_the_optimizer_does_not_have_is_not_made_up() -> None:
    assert scale("sde", 0.1, {"weight_decay": 0.0}, change()).args == {"weight_decay": 0.0}


SCALING = "optimizer={target: adamw, lr: 1e-3, args: {weight_decay: 0.1}, lr_scaling: sde, lr_reference_batch: 2}"


def test_the_resolved_table_is_printed_and_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(load(argv(tmp_path, SCALING, "ema.decay=0.99")), "accumulate")

    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("scaling")] == [
        "scaling   sde, kappa = 8/2 = 4: reference -> resolved",
        "scaling     lr            0.001 -> 0.002                   * sqrt(kappa)",
        "scaling     betas         (0.9, 0.999) -> (0.6561, 0.996)  ** kappa",
        "scaling     eps           1e-08 -> 5e-09                   / sqrt(kappa)",
        "scaling     weight_decay  0.1 -> 0.2                       * kappa / (sqrt(kappa))",
        "scaling     ema.decay     0.99 -> 0.9606                   ** kappa",
    ]
    trace = record(argv(tmp_path, SCALING, "ema.decay=0.99"))
    (logged,) = json.loads((tmp_path / "run/plan.json").read_text())["derived"]["scaling"]
    assert (logged["rule"], logged["kappa"]) == ("sde", 4.0)
    assert logged["ema.decay"] == {"reference": 0.99, "resolved": pytest.approx(0.99**4)}
    assert logged["lr"]["resolved"] == pytest.approx(trace.rates[1])


@pytest.mark.parametrize("stages", [False, True])
def test_the_average_of_the_weights_follows(tmp_path: Path, stages: bool) -> None:
    """Against an average by hand over the weights that the run had."""
    batch = "batch.schedule={0: 4, 20: 8}" if stages else "batch.effective=8"
    kept = {}

    def prepare(run: Any, _: Any) -> None:
        kept.update(run.weights.modules)

    trace = record(
        argv(tmp_path, batch, SCALING, "ema.decay=0.9", "duration={samples: 37}"), prepare=prepare
    )

    average = trace.weights[1]
    for k, weights in enumerate(trace.weights[2:], 2):
        window = trace.windows[k - 1]
        decay = 0.9 ** ((8 if window.seen >= 20 or not stages else 4) / 2)
        average = decay * average + (1 - decay) * weights
    ours = torch.cat([p.detach().flatten() for p in kept["ema"].parameters()])
    assert torch.allclose(ours, torch.from_numpy(average), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("rule", "facts", "message"),
    [
        ("linear", {}, "linear is a rule for SGD"),
        ("linear", {"is_adaptive": False}, ""),
        ("sqrt", {"is_adaptive": False}, "sqrt is a rule for optimizers like Adam"),
        ("sqrt", {}, ""),
        ("sqrt", {"batch": 7, "reference": 64}, "optimizer.lr_scaling=halflife"),
        ("halflife", {}, "halflife is a rule for smaller batches"),
        ("halflife", {"batch": 8}, ""),
        # 256 is 4 times the noise scale: linear gives 4, the noise scale 2 / 1.25.
        (
            "linear",
            {"is_adaptive": False, "noise_scale": 64.0},
            "the rate 2.5 times what the noise scale says",
        ),
        ("linear", {"is_adaptive": False, "noise_scale": 6400.0}, ""),
        ("sqrt", {"noise_scale": 64.0}, "the rate 1.58 times"),
        ("noise", {"noise_scale": 64.0}, ""),
        ("none", {"noise_scale": 64.0}, ""),
    ],
)
def test_what_speaks_against_a_rule(rule: str, facts: dict[str, Any], message: str) -> None:
    found = list(hints(rule, change(**facts)))

    assert len(found) == bool(message)
    assert all(message in hint for hint in found)


def test_the_measured_noise_scale_is_held_against_the_rule_once() -> None:
    messages: list[str] = []
    regime = Regime("linear", [change(is_adaptive=False)], messages.append)

    assert regime.hint() == ""
    regime.watch({"train/loss": 1.0})
    regime.watch(
        {"batch/noise_scale": 64.0, "batch/noise_scale_relative_error": 1.5}
    )  # it may hold
    assert (messages, regime.hint()) == ([], "")
    for _ in range(2):
        regime.watch({"batch/noise_scale": 64.0, "batch/noise_scale_relative_error": 0.1})
    assert len(messages) == 1
    assert "At the measured 64 samples" in messages[0]
    assert regime.hint() == messages[0]


def test_a_run_says_so_itself(tmp_path: Path) -> None:
    """256 samples are many against the noise scale of these points before anything is learned."""
    given = "optimizer={target: sgd, lr: 0.001, lr_scaling: linear, lr_reference_batch: 1}"
    noise = (
        "noise_scale.every_steps=1",
        "batch={effective: 256, micro: 16}",
        "duration={steps: 40}",
    )
    data = "data={source: tests.helpers.tiny, args: {size: 2560}}"

    record(argv(tmp_path, given, *noise, data))

    log = (tmp_path / "run/log.txt").read_text()
    measured = [line for line in log.splitlines() if line.startswith("hint: linear holds while")]
    assert measured, log[-600:]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "optimizer={lr_scaling: noise, lr_reference_batch: 8}",
            "optimizer.noise_scale: got nothing",
        ),
        ("optimizer.noise_scale=0", "must be above 0"),
    ],
)
def test_noise_needs_its_noise_scale(tmp_path: Path, override: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(argv(tmp_path, override))


def test_groups_have_rows_of_their_own() -> None:
    config = OptimizerConfig(target="adamw", lr=0.1, lr_scaling="sqrt", lr_reference_batch=2)
    numbers = scaled_numbers(config, 8)

    assert [row.name for row in numbers.rows] == ["lr", "betas", "eps", "weight_decay"]
    assert math.isclose(numbers.args["weight_decay"], 0.02)
