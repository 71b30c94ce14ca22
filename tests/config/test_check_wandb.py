"""What W&B refuses, the config check refuses too, naming the key: W&B's own validation says what is
right.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers import argv
from train.config import ConfigError, load
from train.config.check_wandb import WANDB_RULES

NAMES = ("project", "name", "group", "entity")
NOTHING: dict[str, Any] = {f"wandb.{name}": None for name in NAMES} | {"wandb.tags": []}
PRINTED = st.characters(categories=["L", "N", "P", "S"])


def refused(**stated: Any) -> set[str]:
    values = NOTHING | {f"wandb.{name}": value for name, value in stated.items()}
    return {key for rule in WANDB_RULES for key, _ in rule(values)}


def wandb_refuses(**stated: Any) -> bool:
    try:
        wandb.Settings(**stated)
    except (ValueError, wandb.errors.UsageError):
        return True
    return False


@settings(max_examples=60)
@given(st.text(PRINTED, min_size=1, max_size=140))
@example("a/b")
@example("p" * 128)
@example("p" * 129)
def test_projects(project: str) -> None:
    assert ("wandb.project" in refused(project=project)) == wandb_refuses(project=project)


@settings(max_examples=60)
@given(st.lists(st.text(PRINTED, max_size=70), max_size=3))
@example(["t" * 64])
@example(["t" * 65])
@example(["ok", ""])
def test_tags(tags: list[str]) -> None:
    assert ("wandb.tags" in refused(tags=tags)) == wandb_refuses(run_tags=tags)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "wandb.project='team/mine'",
            "Write wandb.project=team-mine (a project of a team: wandb.entity=team wandb.",
        ),
        ("wandb.project=''", "W&B takes 1 to 128 characters, this has 0"),
        (f"wandb.tags=[good,{'x' * 65}]", "W&B takes tags of 1 to 64 characters, this has 65"),
        (f"wandb.name={'n' * 129}", "W&B takes 128 characters at most, this has 129"),
        (f"wandb.group={'n' * 129}", "W&B takes 128 characters at most, this has 129"),
        ("wandb.entity=team/mine", "it is one account or team"),
        ('wandb.tags=["a\\tb"]', "it holds a control character"),
    ],
)
def test_a_config_is_refused_without_wandb(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(argv(tmp_path, override, "--print-config"))

    assert f"command line: {override.partition('=')[0]}: got" in str(error.value)
    assert message in str(error.value)


def test_print_config_imports_no_wandb(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from train.config import load; load(sys.argv[1:]); assert 'wandb' not in "
        "sys.modules"
    )
    command = [sys.executable, "-c", code, *argv(tmp_path, "wandb.mode=offline"), "--print-config"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
