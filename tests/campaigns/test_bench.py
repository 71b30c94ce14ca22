"""The benchmark takes 20 minutes: that its last part, which reaches into the package by name, still
runs.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.campaigns.bench import environment
from tests.campaigns.bench_work import write_config, write_data
from tests.campaigns.launched import ROOT


def test_a_fresh_process_of_ours_says_what_its_start_took(tmp_path: Path) -> None:
    data, config, out = tmp_path / "data.parquet", tmp_path / "config.yaml", tmp_path / "out.json"
    write_data("tiny", data)
    write_config("tiny", data, config)

    command = [
        sys.executable,
        "-m",
        "tests.campaigns.bench_fresh",
        str(out),
        "ours",
        "tiny",
        str(data),
        str(config),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(0, 1, 0), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["seconds"].keys() >= {"config", "data and plan", "trial", "first step"}
    assert found["peak_mib"] > 100
