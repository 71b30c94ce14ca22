"""Pages in W&B: what is saved when scripts/page.py is typed, as the server gets it."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_tracker import clean_environ, in_process, online
from tests.wandb_server import WandbServer
from train.comparison.compare import compare
from train.comparison.read import load_runs
from train.comparison.wandb_page import CannotSave, main, save

ROOT = Path(__file__).parents[2]
PANELS = [
    ("progress/samples_seen", ["train/loss"]),
    ("progress/hours", ["train/loss"]),
    ("progress/samples_seen", ["eval/accuracy", "eval/loss"]),
    ("progress/samples_seen", ["batch/effective_size"]),
    ("progress/samples_seen", ["memory/peak_allocated_gib", "memory/peak_rss_gib"]),
    ("progress/samples_seen", ["throughput/samples_per_second"]),
    (
        "progress/samples_seen",
        [
            f"time/{phase}_seconds"
            for phase in ("data", "forward_backward", "sync", "optimizer", "rest")
        ],
    ),
    ("progress/samples_seen", ["train/learning_rate", "train/grad_norm"]),
]
COLUMNS = [
    "run:displayName",
    "run:state",
    "summary:run/effective_batch",
    "summary:run/micro_batch",
    "summary:run/accumulation_steps",
    "summary:run/world_size",
    "summary:run/peak_rss_gib",
    "summary:run/samples_per_second",
    "summary:run/exact",
    "summary:exact/verified_step",
    "summary:best/accuracy",
    "summary:best/step",
]


REFUSED = {
    "isobatch": "it takes ENTITY/PROJECT",
    "tester/elsewhere": "W&B says: ValueError: Could not find project elsewhere",
    "tester/isobatch missing": (
        "tester/isobatch/missing: there is no folder of that name, and W&B says: "
    ),
}
"""{what is typed: why nothing is saved}"""


@dataclass(frozen=True)
class Typed:
    """What was typed, one after the other, in a project that holds two runs of one recipe."""

    server: WandbServer
    ids: list[str]
    answers: dict[str, Any]  # {what was typed: the addresses, or why there are none}
    verdict: str  # of compare, of the two runs


# What runs in the other process.


def train_twice(folder: str) -> list[str]:
    """The ids of the runs in W&B."""
    from train.accumulate import compute_gradient
    from train.main import main as train

    common = [
        str(ROOT / "configs" / "digits.yaml"),
        f"output_dir={folder}",
        "wandb.mode=online",
        "duration.steps=6",
    ]
    for more in (["name=whole"], ["name=split", "wandb.name=in_two|parts", "batch.micro=50"]):
        assert train([*common, "log.every_steps=2", *more], "accumulate", compute_gradient) == 0
    return [
        next(Path(folder, name, "wandb").glob("run-*")).name.split("-")[2]
        for name in ("whole", "split")
    ]


def train_and_save(folder: str) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        ids = train_twice(folder)
    verdict = compare(load_runs([f"tester/isobatch/{run_id}" for run_id in ids]).runs).verdict
    typed = ["tester/isobatch", f"tester/isobatch {' '.join(ids)} missing", *REFUSED]
    return {"ids": ids, "answers": {line: saved(line) for line in typed}, "verdict": verdict}


def saved(line: str) -> dict[str, str] | str:
    project, *runs = line.split()
    try:
        return save(project, runs)
    except CannotSave as error:
        return str(error)


# The tests.


@pytest.fixture(scope="module", name="typed")
def typed_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    home = tmp_path_factory.mktemp("page")
    with WandbServer() as server:
        ended = in_process(train_and_save, online(server, home), home, folder=str(home / "runs"))
        assert ended.stderr == ""
        yield Typed(server, **ended.result)


def as_lines(panels: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    configs = [panel["config"] for panel in panels]
    return [
        (config["xAxis"], sorted(config["metrics"]) if is_evaluation(config) else config["metrics"])
        for config in configs
    ]


def is_evaluation(config: dict[str, Any]) -> bool:
    """Its metrics come in the order in which the server tells them."""
    return config["chartTitle"] == "Evaluation"


def test_a_view_of_columns_and_eight_panels(typed: Typed) -> None:
    assert list(typed.answers["tester/isobatch"]) == ["view"]
    assert typed.answers["tester/isobatch"]["view"].startswith(
        f"{typed.server.url}/tester/isobatch?nw="
    )
    view = typed.server.views[0]
    assert (view["entityName"], view["projectName"], view["type"]) == (
        "tester",
        "isobatch",
        "project-view",
    )
    section = json.loads(view["spec"])["section"]
    (runs,) = section["runSets"]
    assert list(runs["runFeed"]["columnPinned"]) == runs["runFeed"]["columnOrder"] == COLUMNS
    assert section["settings"]["xAxis"] == "progress/samples_seen"
    (shown,) = section["panelBankConfig"]["sections"]
    assert as_lines(shown["panels"]) == PANELS
    assert shown["isOpen"]
    assert typed.server.unknown == set()


def test_a_view_and_a_report_of_two_runs(typed: Typed) -> None:
    answer = typed.answers[f"tester/isobatch {' '.join(typed.ids)} missing"]

    assert list(answer) == ["view", "report"]
    assert answer["report"].startswith(f"{typed.server.url}/tester/isobatch/reports/")
    _, view, report = typed.server.views
    assert view["spec"] != report["spec"]
    assert report["displayName"] == "Comparison of whole, in_two|parts"
    _, text, grid, _ = json.loads(report["spec"])["blocks"]
    assert text["content"].replace("\\", "").startswith(f"**{typed.verdict}**")
    assert "### Cost in time" in text["content"]
    assert "\n| in\\_two\\|parts | " in text["content"]
    assert "- skipped: tester/isobatch/missing: " in text["content"]
    assert as_lines(grid["metadata"]["panelBankSectionConfig"]["panels"]) == PANELS
    (runs,) = grid["metadata"]["runSets"]
    assert runs["runFeed"]["columnOrder"] == COLUMNS
    assert runs["runFeed"]["lockColumns"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == (
        {"section": "run", "name": "name"},
        "IN",
        typed.ids,
    )


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_saved_is_reported(typed: Typed, line: str) -> None:
    assert typed.answers[line].startswith(f"page: nothing was saved\n  got:  {REFUSED[line]}")
    assert "\n  Run:  python scripts/page.py " in typed.answers[line]


def test_nobody_is_logged_in(typed: Typed, tmp_path: Path) -> None:
    environ = clean_environ(tmp_path, WANDB_BASE_URL=typed.server.url)
    answer = in_process(saved, environ, tmp_path, line="tester/isobatch").result

    assert "got:  W&B says: UsageError: No API key configured." in answer
    assert answer.endswith("\n  Run:  wandb login")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    gone = WandbServer()
    gone._http.server_close()
    environ = online(gone, tmp_path, WANDB_HTTP_TIMEOUT="1")
    answer = in_process(saved, environ, tmp_path, line="tester/isobatch").result

    assert answer.startswith("page: nothing was saved\n  got:  W&B says: ")


def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)

    assert main(["tester/isobatch"]) == 2
    assert 'Run:  python -m pip install "wandb-workspaces>=0.4.13"' in capfd.readouterr().err


def test_it_starts_without_torch() -> None:
    code = (
        "import sys, train.comparison.wandb_page; assert not "
        "{'torch', 'wandb', 'wandb_workspaces'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
