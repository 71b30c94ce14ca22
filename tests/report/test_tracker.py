"""W&B for real: wandb and its wandb-core in a process of its own, against a server on the loopback.

What runs there is a plain function of this file; its result comes back as JSON.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import FORKS
from tests.wandb_server import WandbServer
from train.config.schema import Wandb
from train.report.environment import environment
from train.report.login import TrackerError, check_login, tracking_mode
from train.report.tracker import Tracker

KEY = "f" * 40
MARKER = "findable-marker"
"""Not secret: shows that the search for secrets would find one."""
CANARIES = {
    "yaml": "canary-in-yaml",
    "variable": "canary-in-variable",
    "override": "canary-in-override",
    "notes": "canary-in-notes",
    "tag": "canary-in-tag",
    "remote": "canary-in-remote",
    "alert": "canary-in-alert",
}
CANARY = b"canary-in"


@dataclass(frozen=True)
class Ended:
    """A process that has ended with exit code 0."""

    result: Any
    stderr: str
    seconds: float


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


def clean_environ(home: Path, **more: str) -> dict[str, str]:
    """The environment of somebody who has never used W&B and whose home is `home`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB_", "SLURM_"))
    }
    kept.pop("NETRC", None)
    package = str(Path(__file__).parents[2])
    mine = {
        "HOME": str(home),
        "WANDB_DIR": str(home),
        "PYTHONPATH": package,
        "OMP_NUM_THREADS": "1",
    }
    return kept | mine | more


def online(server: WandbServer, home: Path, **more: str) -> dict[str, str]:
    return clean_environ(home, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY, **more)


def in_process(
    function: Callable[..., Any],
    environ: dict[str, str],
    cwd: Path,
    meanwhile: Callable[[], None] | None = None,
    **arguments: Any,
) -> Ended:
    """`function(**arguments)` in a new process without wandb; `meanwhile` runs here while it waits in
    `hand_over`.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        talk = Path(name)
        os.mkfifo(talk / "in")
        process = FORKS.Process(target=_in_fork, args=(function, environ, cwd, talk, arguments))
        process.start()
        try:
            if meanwhile:
                _wait_for(talk / "turn", process)
                meanwhile()
                (talk / "in").write_text("done\n")
            process.join(90)
            assert process.exitcode == 0, (process.exitcode, (talk / "err").read_text())
        finally:
            process.kill()
            process.join()
        assert (talk / "out").read_text() == "", "wandb wrote to our screen"
        return Ended(
            json.loads((talk / "result").read_text()),
            (talk / "err").read_text(),
            time.monotonic() - started,
        )


def _in_fork(
    function: Callable[..., Any],
    environ: dict[str, str],
    cwd: Path,
    talk: Path,
    arguments: dict[str, Any],
) -> None:
    """What a new interpreter would do, in a process that has imported torch already, and wandb not."""
    assert "wandb" not in sys.modules
    os.environ.clear()
    os.environ.update(environ, IN_PROCESS=str(talk))
    os.chdir(cwd)
    for number, file in ((1, "out"), (2, "err")):
        target = os.open(talk / file, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, number)
        os.close(target)
    # forkserver gives no standard streams of its own to what it forks: these are a new
    # interpreter's.
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
    )
    torch.set_num_threads(1)
    (talk / "result").write_text(json.dumps(function(**arguments)))
    atexit._run_exitfuncs()  # which a child of multiprocessing would leave out


def _wait_for(file: Path, process: Any) -> None:
    deadline = time.monotonic() + 90
    while not file.exists():
        assert process.is_alive(), "it ended before it handed over"
        assert time.monotonic() < deadline, "it did not hand over"
        time.sleep(0.05)


def hand_over() -> None:
    talk = Path(os.environ["IN_PROCESS"])
    (talk / "turn").touch()
    (talk / "in").read_text()


# What runs in the other process.


def track(
    folder: str,
    *,
    wandb: dict[str, Any] | None = None,
    steps: tuple[int, int] = (0, 20),
    alert: str = "",
    trouble: str = "",
    run_id: str | None = None,
    limits: tuple[float, float] = (30, 60),
) -> dict[str, Any]:
    """A small run: a row for each step; after half of them, `trouble`."""
    Tracker.start_seconds, Tracker.finish_seconds = limits
    argv = ["train.accumulate", "digits.yaml", f"data.args.token={CANARIES['override']}"]
    run_config = {
        "batch": {"effective": 128},
        "data": {
            "source": "digits",
            "args": {"api_key": CANARIES["yaml"], "token": "${oc.env:HF_TOKEN}"},
        },
        "environment": environment(argv, "digits.yaml"),
        "derived": {"lr_peak": 0.001, "loop": "accumulate", "exact": "verified"},
    }
    started = time.perf_counter()
    tracker = Tracker.start(
        Wandb(**(wandb or {})),
        run_name="digits-micro16",
        default_group="digits",
        job_type="train",
        folder=Path(folder),
        run_config=run_config,
        run_id=run_id,
    )
    start_seconds, log_seconds = time.perf_counter() - started, []
    for step in range(*steps):
        if trouble and step == sum(steps) // 2:
            make_trouble(trouble)
        row = {
            "train/global_step": step,
            "progress/samples_seen": 128 * step,
            "train/loss": 1 / (step + 1),
        }
        if step % 5 == 4:
            row = {**row, "eval/loss": (step - 9) ** 2, "eval/accuracy": step / 100}
        started = time.perf_counter()
        tracker.log(row)
        log_seconds.append(time.perf_counter() - started)
    if alert:
        tracker.alert("stopped", alert, "ERROR")
        tracker.summarise({"ended/reason": alert, "best/accuracy": 0.19})
    started = time.perf_counter()
    tracker.finish(0)
    return {
        "id": tracker.run_id,
        "url": tracker.url,
        "how_to_see": tracker.how_to_see,
        "start_seconds": start_seconds,
        "log_seconds": max(log_seconds),
        "finish_seconds": time.perf_counter() - started,
    }


def make_trouble(kind: str) -> None:
    if kind == "hand over":
        time.sleep(1)  # wandb-core has sent something
        hand_over()
        return
    import psutil

    (core,) = [
        child for child in psutil.Process().children() if child.name().startswith("wandb-core")
    ]
    os.kill(core.pid, {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}[kind])
    time.sleep(0.5)


def read_back(path: str) -> dict[str, Any]:
    import wandb

    (run,) = wandb.Api().runs(path)
    return {
        "config": dict(run.config),
        "summary": {"train/loss": run.summary["train/loss"], "eval/loss": run.summary["eval/loss"]},
        "history": list(run.scan_history(keys=["train/global_step", "train/loss"])),
        "labels": [run.name, run.group, run.job_type, run.tags, run.state],
    }


def everything_under(folder: Path) -> bytes:
    return b"\0".join(
        path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != ".git"
    )


def make_repository(folder: Path) -> None:
    remote = f"https://me:{CANARIES['remote']}@example.org/me/code.git"
    for arguments in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", folder, *arguments], check=True)


SECRETIVE = {
    "notes": f"{MARKER} copied from https://me:{CANARIES['notes']}@example.org/",
    "tags": ["mlp", f"token={CANARIES['tag']}"],
}
ALERT = f"HTTPError: 401 for api_key='{CANARIES['alert']}' and {CANARIES['variable']} {MARKER}"


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WandbServer, Ended, Path]]:
    """An online run with a secret in every place where one can be, finished."""
    home = tmp_path_factory.mktemp("online")
    make_repository(home)
    with WandbServer() as server:
        environ = online(server, home, HF_TOKEN=CANARIES["variable"])
        yield (
            server,
            in_process(track, environ, home, folder=str(home), wandb=SECRETIVE, alert=ALERT),
            home,
        )


def steps_of(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["train/global_step"] for row in rows]


def test_online_run(tracked: tuple[WandbServer, Ended, Path]) -> None:
    server, ended, _ = tracked
    run = server.run

    assert ended.stderr == ""
    assert (
        ended.result["how_to_see"]
        == ended.result["url"]
        == f"{server.url}/tester/isobatch/runs/{run.id}"
    )
    assert steps_of(run.history) == list(range(20))
    assert [row["progress/samples_seen"] for row in run.history] == [
        128 * step for step in range(20)
    ]
    assert (run.state, server.unknown) == ("finished", set())
    attributes = run.attributes
    assert (attributes["displayName"], attributes["groupName"], attributes["jobType"]) == (
        "digits-micro16",
        "digits",
        "train",
    )
    assert attributes["tags"] == ["mlp", "token=[redacted]"]
    assert run.config["derived"] == {"lr_peak": 0.001, "loop": "accumulate", "exact": "verified"}
    assert run.config["data"]["args"] == {"api_key": "[redacted]", "token": "${oc.env:HF_TOKEN}"}
    assert run.config["environment"]["git"]["remote"] == "https://example.org/me/code.git"
    assert [alert["title"] for alert in server.alerts] == ["stopped"]
    assert run.summary["best/accuracy"] == 0.19
    assert MARKER in run.summary["ended/reason"]  # redacted: see test_no_secret_is_sent


def test_only_what_we_hand_over_is_sent(tracked: tuple[WandbServer, Ended, Path]) -> None:
    server, _, _ = tracked
    assert {Path(path).name for path in server.uploads} == {"config.yaml", "wandb-summary.json"}
    assert set(server.run.streams) <= {
        "wandb-history.jsonl",
        "wandb-summary.json",
        "wandb-events.jsonl",
    }
    assert server.run.attributes["program"] == "isobatch"


def test_samples_seen_is_the_x_axis_of_everything(tracked: tuple[WandbServer, Ended, Path]) -> None:
    server, _, _ = tracked
    # "1": name, "2": glob, "5": number of the x-axis, from 1
    metrics = server.run.config["_wandb"]["m"]
    named = {metric.get("1") or metric.get("2"): metric for metric in metrics}
    assert metrics[named["*"]["5"] - 1]["1"] == "progress/samples_seen"
    assert metrics[named["memory/peak_rss_gib"]["5"] - 1]["1"] == "progress/samples_seen"
    assert "train/global_step" in named


def test_no_secret_is_sent_or_kept(tracked: tuple[WandbServer, Ended, Path]) -> None:
    server, _, home = tracked
    sent = b"\n".join(server.received)
    assert MARKER.encode() in sent
    assert CANARY not in sent
    kept = everything_under(home)
    assert kept.count(MARKER.encode()) >= 1
    assert CANARY not in kept


def test_api_reads_config_summary_and_history(tracked: tuple[WandbServer, Ended, Path]) -> None:
    server, _, home = tracked
    read = in_process(read_back, online(server, home), home, path="tester/isobatch").result
    assert read["config"]["derived"]["lr_peak"] == 0.001
    assert read["summary"]["train/loss"] == pytest.approx(1 / 20)
    assert read["summary"]["eval/loss"] == 100
    assert steps_of(read["history"]) == list(range(20))
    assert [row["train/loss"] for row in read["history"]] == pytest.approx(
        [1 / (step + 1) for step in range(20)]
    )
    assert read["labels"] == [
        "digits-micro16",
        "digits",
        "train",
        ["mlp", "token=[redacted]"],
        "finished",
    ]


def test_same_id_goes_on_with_the_history(server: WandbServer, tmp_path: Path) -> None:
    first = in_process(
        track, online(server, tmp_path), tmp_path, folder=str(tmp_path / "a"), steps=[0, 10]
    ).result
    in_process(
        track,
        online(server, tmp_path),
        tmp_path,
        folder=str(tmp_path / "b"),
        steps=[5, 15],
        run_id=first["id"],
    )

    # Steps 5 to 9 were trained again after a checkpoint at 5: W&B has them twice, and drops none.
    assert steps_of(server.run.history) == [*range(10), *range(5, 15)]
    # W&B's own count goes on too
    assert [row["_step"] for row in server.run.history] == list(range(20))
    assert server.run.state == "finished"


def test_offline_run_is_synced_by_the_line_we_print(server: WandbServer, tmp_path: Path) -> None:
    make_repository(tmp_path)
    environ = clean_environ(tmp_path, WANDB_BASE_URL=server.url, HF_TOKEN=CANARIES["variable"])
    ended = in_process(track, environ, tmp_path, folder=str(tmp_path), wandb=SECRETIVE, alert=ALERT)
    assert ended.stderr == ""
    assert ended.result["url"] is None
    assert server.received == []
    kept = everything_under(tmp_path / "wandb")
    assert MARKER.encode() in kept
    assert CANARY not in kept

    program, *line = ended.result["how_to_see"].split(" ")
    assert program == "wandb"
    command = [sys.executable, "-m", "wandb", *line]
    subprocess.run(
        command,
        cwd=tmp_path,
        env=online(server, tmp_path),
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert steps_of(server.run.history) == list(range(20))
    assert server.run.config["derived"]["lr_peak"] == 0.001
    assert CANARY not in b"\n".join(server.received)


def test_server_that_dies_costs_one_warning(server: WandbServer, tmp_path: Path) -> None:
    ended = in_process(
        *(track, online(server, tmp_path), tmp_path, server.stop),
        **{"folder": str(tmp_path), "trouble": "hand over", "limits": (10, 2)},
    )
    assert ended.stderr.count("W&B: ") == 1
    assert ended.stderr.count("\n") == 1
    assert "wandb sync wandb/run-" in ended.stderr
    assert ended.result["how_to_see"].startswith("incomplete: wandb sync ")
    assert ended.result["log_seconds"] < 0.1
    assert ended.result["finish_seconds"] < 10


def test_server_that_is_not_there_costs_one_warning(server: WandbServer, tmp_path: Path) -> None:
    server.stop()
    ended = in_process(
        track, online(server, tmp_path), tmp_path, folder=str(tmp_path), limits=(1, 2)
    )
    assert ended.stderr.count("\n") == 1
    assert "tracking offline" in ended.stderr
    assert ended.result["how_to_see"].startswith("wandb sync wandb/offline-run-")


@pytest.mark.parametrize("trouble", ["kill", pytest.param("freeze", marks=pytest.mark.slow)])
def test_dead_or_stuck_wandb_core_costs_one_warning(
    server: WandbServer, tmp_path: Path, trouble: str
) -> None:
    many = [0, 3000]  # more than the socket to a stuck wandb-core takes
    ended = in_process(  # returns when nobody holds its stderr any more, wandb-core included
        *(track, online(server, tmp_path), tmp_path),
        **{"folder": str(tmp_path), "trouble": trouble, "steps": many, "limits": (10, 1)},
    )
    assert ended.stderr.count("W&B: ") == ended.stderr.count("\n") == 1, ended.stderr
    assert ended.result["log_seconds"] < 0.1
    assert ended.result["finish_seconds"] < 20


def test_privacy_and_the_id_of_a_sweep(server: WandbServer, tmp_path: Path) -> None:
    make_repository(tmp_path)
    environ = online(
        server, tmp_path, WANDB_SWEEP_ID="sweep1", WANDB_RUN_ID="trial7", WANDB_PROJECT="swept"
    )
    ended = in_process(
        track, environ, tmp_path, folder=str(tmp_path), wandb={"privacy": True, "project": "mine"}
    )
    assert (ended.stderr, ended.result["id"]) == ("", "trial7")
    assert list(server.runs) == [("swept", "trial7")]
    assert not server.run.attributes.get("host")
    assert "packages" in server.run.config["environment"]
    assert not {"host", "command", "config_path"} & server.run.config["environment"].keys()
    assert b"example.org" not in b"\n".join(server.received)


# Without wandb.


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody is logged in; returns the home."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_auto_is_online_where_somebody_is_logged_in(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_mode(Wandb()) == "offline"
    (nobody / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password nothing\n")
    assert tracking_mode(Wandb()) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert tracking_mode(Wandb()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert tracking_mode(Wandb()) == "online"


def test_a_login_at_the_default_server_of_this_wandb_counts(nobody: Path) -> None:
    """Its address changed with wandb 0.31; `wandb login` writes the new one."""
    from urllib.parse import urlsplit

    import wandb

    server = urlsplit(str(wandb.Settings().base_url)).netloc
    (nobody / ".netrc").write_text(f"machine {server}\n  login user\n  password {KEY}\n")
    assert tracking_mode(Wandb()) == "online"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_auto_follows_wandb_mode(nobody: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (nobody / ".config" / "wandb").mkdir(parents=True)
    (nobody / ".config" / "wandb" / "settings").write_text(f"[default]\nmode = {mode}\n")
    assert tracking_mode(Wandb()) == mode
    assert tracking_mode(Wandb(mode="online")) == "online"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert tracking_mode(Wandb()) == "online"


def test_online_without_a_key_is_refused_with_the_line_to_type(nobody: Path) -> None:
    with pytest.raises(
        TrackerError, match=r"nobody is logged in to https://api\..* here\. Run: wandb login \("
    ):
        check_login(Wandb(mode="online"))
    check_login(Wandb(mode="auto"))


def test_disabled_does_nothing_and_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.report.test_tracker import track; "
        "print(track('.', wandb={'mode': 'disabled'})['how_to_see'], 'wandb' in sys.modules)"
    )
    environ = clean_environ(tmp_path)
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True
    )
    assert ended.stdout == "not tracked: wandb.mode=disabled False\n"
    assert list(tmp_path.iterdir()) == []
