"""docs/own_data.md: typed as it stands in a fresh copy, on data that comes with installed packages."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.fresh_copy import ROOT, active_environment, copy_repository

PAGE = ROOT / "docs" / "own_data.md"


@pytest.mark.timeout(600)
def test_a_newcomer_types_the_page(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    (tmp_path / "my").mkdir(exist_ok=True)

    command = [sys.executable, "-m", "tests.house.type_blocks", str(PAGE.relative_to(ROOT))]
    done = subprocess.run(
        command, cwd=tmp_path, env=active_environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    accuracy = {
        name: last(tmp_path / "runs" / name, "eval/accuracy")
        for name in ("letters-epochs5", "all_letters-epochs5", "icons")
    }
    assert min(accuracy["letters-epochs5"], accuracy["all_letters-epochs5"]) > 0.8, (
        "of two classes of equal size"
    )
    assert accuracy["icons"] >= 0
    assert last(tmp_path / "runs" / "texts", "eval/bits_per_byte") < 7
    assert "each document is a text of its own" in done.stdout
    assert "normalize mean +- deviation of" in done.stdout


def last(run: Path, key: str) -> float:
    values = [
        json.loads(line).get(key) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return [value for value in values if value is not None][-1]


@pytest.mark.parametrize("page", ["own_data.md", "unread.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)

    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
