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
        [f"time/{phase}_seconds" for phase in ("data", "forward_backward", "sync", "optimizer", "rest")],
    ),
    ("progress/samples_seen", ["train/learning_rate", "train/grad_norm"]),
]


@dataclass(frozen=True)
class Place:
    """A project that holds two runs of one recipe."""

    server: WandbServer
    home: Path
    ids: list[str]

    def page(self, *arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / "page.py"), *arguments]
        environ = environ or online(self.server, self.home)
        return subprocess.run(command, cwd=self.home, env=environ, capture_output=True, text=True, check=False)


def train_twice(folder: str) -> list[int]:
    from train.accumulate import compute_gradient
    from train.main import main

    common = [str(ROOT / "configs" / "digits.yaml"), f"output_dir={folder}", "wandb.mode=online", "duration.steps=20"]
    with contextlib.redirect_stdout(io.StringIO()):
        runs = (["name=whole"], ["name=split", "wandb.name=in_two|parts", "batch.micro=50"])
        return [main([*common, "log.every_steps=2", *more], "accumulate", compute_gradient) for more in runs]


@pytest.fixture(scope="module", name="place")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("page")
    with WandbServer() as server:
        ended = in_process(train_twice, online(server, home), home, folder=str(home / "runs"))
        assert ended.result == [0, 0], ended.stderr
        yield Place(server, home, [run.id for run in server.runs.values()])


def as_lines(panels: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    configs = [panel["config"] for panel in panels]
    return [
        (config["xAxis"], sorted(config["metrics"]) if is_evaluation(config) else config["metrics"])
        for config in configs
    ]


def is_evaluation(config: dict[str, Any]) -> bool:
    """Its metrics come in the order in which the server tells them."""
    return config["chartTitle"] == "Evaluation"


def test_a_workspace_of_eight_panels(place: Place) -> None:
    done = place.page("tester/isobatch")

    assert (done.returncode, done.stderr) == (0, "")
    view = place.server.views[-1]
    assert (view["entityName"], view["projectName"], view["type"]) == ("tester", "isobatch", "project-view")
    assert '"summary:batch/effective": true' in json.dumps(json.loads(view["spec"]))
    section = json.loads(view["spec"])["section"]
    assert section["settings"]["xAxis"] == "progress/samples_seen"
    (shown,) = section["panelBankConfig"]["sections"]
    assert as_lines(shown["panels"]) == PANELS
    assert shown["isOpen"]
    assert done.stdout.startswith(f"{place.server.url}/tester/isobatch?nw=")
    assert place.server.unknown == set()


def test_a_report_of_two_runs(place: Place) -> None:
    done = place.page("tester/isobatch", *place.ids, "missing")

    assert (done.returncode, done.stderr) == (0, "")
    view = place.server.views[-1]
    assert view["displayName"] == "Comparison of whole, in_two|parts"
    _, text, grid, _ = json.loads(view["spec"])["blocks"]
    assert text["content"].startswith("**Same mathematics in 2 runs of 2 set-ups; with the same seed train/loss")
    assert "### Cost in time" in text["content"]
    assert "\n| in\\_two\\|parts | " in text["content"]
    assert "- left out: tester/isobatch/missing: " in text["content"]
    assert as_lines(grid["metadata"]["panelBankSectionConfig"]["panels"]) == PANELS
    (runs,) = grid["metadata"]["runSets"]
    assert '"summary:batch/effective": true' in json.dumps(runs)
    (only,) = runs["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "name"}, "IN", place.ids)
    assert done.stdout.startswith(f"{place.server.url}/tester/isobatch/reports/")
    assert place.server.unknown == set()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["isobatch"], "it takes ENTITY/PROJECT"),
        (["tester/elsewhere"], "W&B says: ValueError: Could not find project elsewhere"),
        (["tester/isobatch", "missing"], "tester/isobatch/missing: there is no folder of that name, and W&B says: "),
    ],
)
def test_what_cannot_be_saved_is_told(place: Place, arguments: list[str], reason: str) -> None:
    before = len(place.server.views)

    done = place.page(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"page: nothing was saved\n  got:  {reason}")
    assert "\n  type: python scripts/page.py " in done.stderr
    assert len(place.server.views) == before


def test_nobody_is_logged_in(place: Place, tmp_path: Path) -> None:
    done = place.page("tester/isobatch", environ=clean_environ(tmp_path, WANDB_BASE_URL=place.server.url))

    assert done.returncode == 2
    assert "got:  W&B says: UsageError: No API key configured." in done.stderr
    assert done.stderr.endswith("\n  type: wandb login\n")


@pytest.mark.slow
def test_a_server_that_is_not_there(place: Place, tmp_path: Path) -> None:
    gone = WandbServer()
    gone._http.server_close()
    done = place.page("tester/isobatch", environ=online(gone, tmp_path))

    assert done.returncode == 2
    assert done.stderr.startswith("page: nothing was saved\n  got:  W&B says: ")


def test_without_the_library(place: Place) -> None:
    code = "import sys; sys.modules['wandb_workspaces'] = None; "
    code += "from train.comparison.wandb_page import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "tester/isobatch"]
    environ = online(place.server, place.home)
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert 'type: python -m pip install "wandb-workspaces>=0.4.13"' in done.stderr


def test_it_starts_without_torch() -> None:
    code = (
        "import sys, train.comparison.wandb_page; assert not {'torch', 'wandb', 'wandb_workspaces'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
