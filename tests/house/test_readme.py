"""The README's commands, typed one after the other in a fresh copy, as a newcomer would."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.house.fresh_copy import ROOT, active_environment, copy_repository


def commands() -> list[str]:
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.timeout(900)
def test_every_command_runs(tmp_path: Path) -> None:
    copy_repository(tmp_path)

    # this one is running
    typed = [command for command in commands() if "scripts/test.sh" not in command]
    assert [command.split()[0] for command in typed].count("./launch.sh") >= 3
    environment = active_environment()
    for command in typed:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {
        "digits",
        "digits-micro16",
        "digits-two-ranks",
        "digits-standard",
        "lm-steps20",
        "flowers",
    }
