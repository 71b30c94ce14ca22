"""scripts/gpu_check.sh: what it writes where there are GPUs (played here), and how it ends where
there is none.
"""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.gpu import __main__ as check
from tests.gpu.devices import missing

ROOT = Path(__file__).parents[2]


def play(words: list[str], plugins: list[Any]) -> int:
    """pytest, as it calls a plugin for a test that passes, one that fails and one that is skipped."""
    assert words == ["tests/gpu", "-v", "-m", "gpus", "-k", "some"]

    def told(name: str, when: Any, outcome: Any, longrepr: Any = None) -> None:
        report = pytest.TestReport(
            f"tests/gpu/{name}", ("", 0, ""), {}, outcome, longrepr, when, duration=1.5
        )
        plugins[0].pytest_runtest_logreport(report)

    for when in ("setup", "call", "teardown"):
        told("test_a.py::test_one", when, "passed")
    told("test_a.py::test_two[x|y]", "setup", "passed")
    told(
        "test_a.py::test_two[x|y]",
        "call",
        "failed",
        "def test_two():\nE   AssertionError: 1 is not 2\nE   assert 1 == 2",
    )
    told(
        "test_b.py::test_three",
        "setup",
        "skipped",
        ("conftest.py", 12, "Skipped: needs 2 GPUs: torch can use 1 here"),
    )
    return 1


def test_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", total_memory=80 * 2**30, major=8, minor=0)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check.pytest, "main", play)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))

    assert check.main(["-k", "some"]) == 1

    assert capsys.readouterr().out.splitlines()[-1] == "report: docs/gpu-1-nvidia-a100-sxm4-80gb.md"
    text = (tmp_path / "docs" / "gpu-1-nvidia-a100-sxm4-80gb.md").read_text()
    assert "1 passed, 1 failed, 1 skipped" in text
    assert "`./scripts/gpu_check.sh -k some`" in text
    assert "- GPU 0: NVIDIA A100-SXM4-80GB, 80 GiB, sm_80" in text
    assert f"torch: {torch.__version__}" in text
    assert "NCCL 2.27.5" in text
    assert text.splitlines()[-3:] == [
        "| `test_a.py::test_one` | passed | 1.5 |  |",
        "| `test_a.py::test_two[x/y]` | **failed** | 1.5 | AssertionError: 1 is not 2 |",
        "| `test_b.py::test_three` | **skipped** | 1.5 | needs 2 GPUs: torch can use 1 here |",
    ]


@pytest.mark.skipif(not missing(1), reason="there is a GPU: the tests would run for minutes")
def test_without_a_gpu_it_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gpu_check: nothing to check, needs a GPU: torch")
    assert printed.err.count("\n") == 1


PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then printf '%s\\n' "$0" "{folder}" ""; exit; fi
echo "$@"
echo "rank ${{RANK-unset}}, use cpu ${{ACCELERATE_USE_CPU-unset}}, hub ${{HF_HUB_OFFLINE-unset}}"
exit 7
"""


def test_the_script_hands_over_to_the_environments_python(tmp_path: Path) -> None:
    """The interpreter is played: it has all packages, and prints what it is asked to run."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON.format(folder=tmp_path))
    python.chmod(0o755)
    environment = os.environ | {
        "VIRTUAL_ENV": str(tmp_path),
        "RANK": "3",
        "ACCELERATE_USE_CPU": "true",
    }
    script = [str(ROOT / "scripts" / "gpu_check.sh"), "-k", "resume"]

    done = subprocess.run(
        script, env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == [
        "-m tests.gpu -k resume",
        "rank unset, use cpu unset, hub 1",
    ]
