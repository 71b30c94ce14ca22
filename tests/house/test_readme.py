"""The README's commands, typed one after the other in a fresh copy, as a newcomer would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.timeout(900)
def test_every_command_runs(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    # The environment of these tests is the active one: launch.sh then makes none.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix, "WANDB_MODE": "disabled"}

    typed = [command for command in commands() if "scripts/test.sh" not in command]  # this one is running
    assert [command.split()[0] for command in typed].count("./launch.sh") >= 3
    for command in typed:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {
        "digits",
        "digits-micro16",
        "digits-two-ranks",
        "digits-standard",
        "lm-steps20",
    }
