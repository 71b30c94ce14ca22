"""WANDB_* variables: each is used where the config leaves it open, refused where W&B refuses it, or
named as unused.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.config.schema import Wandb
from train.main import main
from train.report.login import TrackerError, tracking_mode
from train.report.wandb_settings import FIXED, check_settings, labels, unused_variables

VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "their-name",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_JOB_TYPE": "their-job",
    "WANDB_TAGS": "one, two",
    "WANDB_NOTES": "their notes",
}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def called(**config: Any) -> dict[str, Any]:
    return labels(Wandb(**config), run_name="r" * 200, group="stem", job_type="train")


def test_the_config_comes_first_then_the_environment_then_our_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {
        "project": "isobatch",
        "run_name": "r" * 128,
        "run_group": "stem",
        "run_job_type": "train",
    }
    assert called() == own

    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    theirs = {
        "project": "theirs",
        "entity": "team",
        "run_name": "their-name",
        "run_group": "their-group",
        "run_job_type": "their-job",
        "run_tags": ["one", "two"],
        "run_notes": "their notes",
    }
    assert called() == theirs
    config = {
        "project": "mine",
        "entity": "me",
        "name": "my-name",
        "group": "g",
        "tags": ["t"],
        "notes": "n",
    }
    mine = {
        "project": "mine",
        "entity": "me",
        "run_name": "my-name",
        "run_group": "g",
        "run_tags": ["t"],
    }
    assert called(**config) == theirs | mine | {"run_notes": "n"}

    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert called(**config)["project"] == "theirs", "a trial belongs to the project of its sweep"


def test_the_project_that_wandb_init_wrote_down(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nentity = team\nproject = written\n")
    assert (called()["project"], called()["entity"]) == ("written", "team")


def test_what_is_not_used_is_named() -> None:
    used = {
        **FIXED,
        **called(project="mine"),
        "root_dir": "/run",
        "mode": "offline",
        "run_id": "abc",
    }
    environ = {
        "WANDB_PROJECT": "theirs",
        "WANDB_DIR": "/elsewhere",
        "WANDB_RUN_ID": "xyz",
        "WANDB_CONSOLE": "wrap",
        "WANDB_WATCH": "all",
        "WANDB_LOG_MODEL": "true",
        "WANDB_SILENT": "true",  # as we do
        "WANDB_MODE": "dryrun",  # an old name of offline
        "WANDB_NOTES": "used",
        "WANDB_NO_SUCH": "x",
        "HOME": "/home",
    }

    line = unused_variables(used, environ)

    assert line.startswith("not used: WANDB_CONSOLE (")
    assert "WANDB_PROJECT (the config says wandb.project='mine')" in line
    assert "WANDB_DIR (the run folder and its checkpoints decide it)" in line
    assert "WANDB_LOG_MODEL (set wandb.log_model=true)" in line
    named = {name for name in environ if name in line}
    assert named == {
        "WANDB_PROJECT",
        "WANDB_DIR",
        "WANDB_RUN_ID",
        "WANDB_CONSOLE",
        "WANDB_WATCH",
        "WANDB_LOG_MODEL",
    }
    assert "theirs" not in line
    assert unused_variables(used, {"WANDB_NOTES": "used"}) == ""


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("WANDB_PROJECT", "a/b", "WANDB_PROJECT: got 'a/b'; W&B refuses it: Invalid project name"),
        ("WANDB_TAGS", "x" * 65, "WANDB_TAGS: got ['xxx"),
        ("WANDB_BASE_URL", "nonsense", "WANDB_BASE_URL, in the environment: W&B refuses it"),
        ("WANDB_MODE", "nonsense", "WANDB_MODE, in the environment: W&B refuses it"),
        ("WANDB_RUN_ID", "a/b", "WANDB_RUN_ID, in the environment: W&B refuses it"),
        (
            "WANDB_API_KEY",
            " secret-secret",
            "WANDB_API_KEY, in the environment: W&B refuses it: API key cannot",
        ),
    ],
)
def test_what_wandb_refuses_is_refused_before_the_training(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TrackerError) as error:
        check_settings(Wandb(mode="offline"))

    assert str(error.value).startswith(key)
    assert "secret-secret" not in str(error.value)
    check_settings(Wandb(mode="disabled"))


def test_a_run_is_refused_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "team/mine")

    assert main(argv(tmp_path, "wandb.mode=offline"), "accumulate", compute_gradient) == 2
    assert "WANDB_PROJECT: got 'team/mine'; W&B refuses it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["true", "1", "True"])
def test_wandb_disabled(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WANDB_DISABLED", value)
    assert tracking_mode(Wandb()) == "disabled"
    assert tracking_mode(Wandb(mode="offline")) == "offline"
