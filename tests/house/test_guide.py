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

GUIDE = ROOT / "docs" / "guide.md"
PAGES = [GUIDE, ROOT / "docs" / "cluster.md"]


@pytest.mark.timeout(600)
def test_every_block_runs(tmp_path: Path) -> None:
    copy_repository(tmp_path)

    command = [sys.executable, "-m", "tests.house.type_blocks", str(GUIDE.relative_to(ROOT))]
    done = subprocess.run(
        command, cwd=tmp_path, env=active_environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    runs = {folder.name for folder in (tmp_path / "runs").iterdir()}
    wanted = "base hearts finetune stream best long two two-by-hand noise sweep lora gauge"
    assert set(wanted.split()) <= runs
    assert done.stdout.count("$ ") >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())

    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


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
    table = GUIDE.read_text().partition("## Your old keys")[2]
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
