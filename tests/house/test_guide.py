"""The guide: every command and every block is run, in a fresh copy; its keys and names are those of
the code.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.fresh_copy import ROOT, active_environment, copy_repository
from train.config.hints import nearest
from train.config.keys import SECTIONS, TYPES, owner, parts

INDEX = ROOT / "docs" / "guide.md"
GUIDE = [INDEX, *sorted((ROOT / "docs" / "guide").glob("*.md"))]
PAGES = [*GUIDE, ROOT / "docs" / "cluster.md", ROOT / "docs" / "troubleshooting.md"]
MOVING = ROOT / "docs" / "guide" / "moving.md"

RUNS = {
    "guide": "digits-micro16-steps20",
    "start": "base hearts",
    "batch": "unequal stages",
    "data": "table points points_file-steps10 pictures stream",
    "model": "net-steps20 whole lora",
    "task": "two-steps20 best",
    "optimizer": "base finetune",
    "running": "two two-by-hand divided divided-as-one long",
    "memory": "net-steps5-precision_bf16 net-steps5-dtype_bf16 net-steps5-compile_aot_eager",
    "comparing": "whole-batch quarters sweep noise",
    "moving": "",
    "gauge": "gauge",
}
"""The runs that the commands of a page leave, by their names."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, tmp_path: Path) -> None:
    copy_repository(tmp_path)

    command = [sys.executable, "-m", "tests.house.type_blocks", str(page.relative_to(ROOT))]
    done = subprocess.run(
        command, cwd=tmp_path, env=active_environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    runs = tmp_path / "runs"
    assert set(RUNS[page.stem].split()) <= {path.name for path in runs.glob("*")}
    typed = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert typed == [f"$ {command}" for command in commands(page)]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_guide_types_as_many_commands_as_ever() -> None:
    assert sum(len(commands(page)) for page in GUIDE) >= 45


def test_the_index_names_every_page() -> None:
    named = set(re.findall(r"\]\(guide/(\w+)\.md\)", INDEX.read_text()))

    assert named == {page.stem for page in GUIDE} - {"guide"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_exist(page: Path) -> None:
    ours = page.read_text().partition("## Your old keys")[0]
    keys = re.findall(rf"(?<![\w./])((?:{'|'.join(SECTIONS)})\.[a-z_.]+)(?=[=`])", ours)
    keys = [
        key for key in keys if Path(key).suffix not in (".py", ".yaml", ".json", ".jsonl", ".txt")
    ]

    # `data.image={...}` is a section of its own.
    assert [
        key
        for key in keys
        if owner(parts(key)) is None and not any(t.startswith(f"{key}.") for t in TYPES)
    ] == []


def test_old_keys_are_led_to_ours() -> None:
    """What a config says to another trainer's key is what the table says."""
    table = MOVING.read_text().partition("## Your old keys")[2]
    rows = [
        line.strip("|").split("|")
        for line in table.splitlines()
        if line.startswith("| ") and "`" in line
    ]
    wrong = []
    for _, *theirs, last in rows:
        ours = re.findall(r"`([^`]+)`", last)
        wrong += [key for key in ours if owner(parts(key)) is None]
        for name in re.findall(r"`([^`]+)`", " ".join(theirs)):
            if owner(parts(name)) is None and not set(nearest(name)) & set(ours):
                wrong.append(f"{name}: the table says {ours}, the code {nearest(name)}")

    assert len(rows) > 15
    assert wrong == []
