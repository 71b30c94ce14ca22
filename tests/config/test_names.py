"""Names of runs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import load
from train.config.load import run_name
from train.config.names import LONGEST, short_form


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "digits"),
        (["batch.micro=16", "seed=1"], "digits-micro16-seed1"),
        (["seed=1", "batch.micro=16"], "digits-micro16-seed1"),
        (["seed=1", "seed=2"], "digits-seed2"),
        (["optimizer.lr=3e-4"], "digits-lr3e-4"),
        (["schedule.name=cosine"], "digits-name_cosine"),
        (["output_dir=/tmp/x", "name=y", "log.every_steps=3", "checkpoint.resume=never"], "digits"),
        (["model.args.hidden=[64,64]"], "digits-hidden_64_64"),
        (["data.source=a/b:c"], "digits-source_a_b_c"),
    ],
)
def test_the_short_form_of_the_overrides(overrides: list[str], name: str) -> None:
    assert short_form("digits", overrides) == name


def test_long_names_are_cut_and_told_apart_by_a_hash() -> None:
    one, other = (short_form("digits", [f"data.source={'a' * 200}{end}"]) for end in "xy")
    assert one != other
    assert len(one) <= LONGEST
    assert one == short_form("digits", [f"data.source={'a' * 200}x"])


def test_a_name_that_windows_keeps_for_a_device_gets_a_tail() -> None:
    assert short_form("con", []) == "con_"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "digits-task3"),
        (["seed=3"], "digits-seed3"),  # typed as seed=%a
        (["batch.micro=13"], "digits-micro13-task3"),
        (["name=mine"], "mine-task3"),
        (["name=mine3"], "mine3"),
    ],
)
def test_the_tasks_of_an_array_have_names_of_their_own(
    words: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert run_name(load(["configs/digits.yaml", "--print-config", *words])) == name

    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    assert run_name(load(["configs/digits.yaml", "--print-config", "name=mine"])) == "mine-trial7"


@given(
    st.text(min_size=1),
    st.lists(st.tuples(st.sampled_from(["seed", "batch.micro"]), st.text(min_size=1))),
)
def test_every_name_is_safe_as_a_folder(stem: str, pairs: list[tuple[str, str]]) -> None:
    name = short_form(stem, [f"{key}={value}" for key, value in pairs])
    assert re.fullmatch(r"[A-Za-z0-9.+_-]{1,81}", name)
    assert not name.startswith(".")
    assert not name.endswith(".")
