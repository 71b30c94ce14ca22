"""launch.sh and scripts/environment.sh, run for real: a copy of them starts a stand-in for the
training.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launching.cards import A100, cards, listed, nvidia_smi
from train.launching import choose
from train.launching import command as launch_command
from train.launching.arguments import LaunchRefused, parse
from train.launching.command import build
from train.launching.launcher_file import find

ROOT = Path(__file__).resolve().parents[1]

# What a rank does here: it says who it is, waits for signals if told so, and ends as told.
STAND_IN = """
import json, os, pathlib, signal, subprocess, sys, time
say = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
rank, got = os.environ.get("RANK", "0"), []
time.sleep(float(say.get("deaf", 0)))
for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT"):
    signal.signal(getattr(signal, name), lambda number, _: got.append(signal.Signals(number).name))
seen = lambda: list(pathlib.Path(say["out"]).glob("rank-*.json"))
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) if "helper" in say else None
def report():
    me = {"pid": os.getpid(), "parent": os.getppid(), "argv": sys.argv, "env": dict(os.environ), "got": got}
    if helper:
        me["helper_lives"] = helper.poll() is None
    here = pathlib.Path(say["out"])
    (here / f"{rank}.new").write_text(json.dumps(me))
    (here / f"{rank}.new").rename(here / f"rank-{rank}.json")
report()
end = time.monotonic() + 40
while len(got) < int(say.get("signals", 0)) and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.2 if got else 0)
report()
if helper and say["helper"] == "ends":
    helper.kill(), helper.wait()
ended = pathlib.Path(os.environ.get("ISOBATCH_ENDED", say["out"]))
if rank == "0" and "code" in say and "ISOBATCH_ENDED" in os.environ:
    ended.write_text(json.dumps({"reason": "told so", "code": int(say["code"]), "step": 3}))
if "exit" in say and rank == say.get("exits", rank):
    # A rank that fails takes the others along; not before they have said what the test wants to hear.
    while not ended.exists() and "code" in say or len(seen()) < int(os.environ.get("WORLD_SIZE", "1")):
        time.sleep(0.02)
    sys.exit(int(say["exit"]))
"""


class Clone:
    """A copy of launch.sh in a folder with a space in its name, and how to run it from elsewhere."""

    def __init__(self, tmp_path: Path) -> None:
        self.path, self.cwd, self.out = (
            tmp_path / "the clone",
            tmp_path / "else where",
            tmp_path / "out put",
        )
        for folder in (self.path / "scripts", self.path / "train", self.cwd, self.out):
            folder.mkdir(parents=True)
        for name in ("launch.sh", "scripts/environment.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.path / name)
        shutil.copytree(ROOT / "configs" / "accelerate", self.path / "configs" / "accelerate")
        shutil.copy(ROOT / "configs" / "digits.yaml", self.path / "configs")
        modules = ("__init__", "disk", "errors", "installation", "launch", "output", "terminal")
        for name in (f"{module}.py" for module in modules):
            shutil.copy(ROOT / "train" / name, self.path / "train" / name)
        for name in ("launching", "redaction"):
            shutil.copytree(ROOT / "train" / name, self.path / "train" / name)
        (self.path / "train" / "accumulate.py").write_text(STAND_IN)
        # Would be run instead of ours if the current directory stood first on the path.
        (self.cwd / "train.py").write_text("raise SystemExit('the wrong train was imported')")
        self.started: list[subprocess.Popen[str]] = []
        self.env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
        # A GPU of this machine would change what the tests see. By TMPDIR a test knows its
        # processes again.
        self.env |= {"TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}

    def start(self, *command: str | Path, **env: str) -> subprocess.Popen[str]:
        # A process that was started in the background ignores Ctrl-C, and so would all that it
        # starts.
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=self.cwd,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def launch(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return self.start(self.path / "launch.sh", *words, f"out={self.out}", **env)

    def run(self, *command: str | Path, **env: str) -> tuple[int, str, str]:
        process = self.start(*command, **env)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

    def ranks(self, number: int) -> list[dict]:
        """What the ranks said about themselves, as soon as all of them have."""
        files, end = (
            [self.out / f"rank-{rank}.json" for rank in range(number)],
            time.monotonic() + 40,
        )
        while not all(file.exists() for file in files):
            assert self.started[-1].poll() is None, self.started[-1].communicate()[1]
            assert time.monotonic() < end, "the ranks did not start"
            time.sleep(0.05)
        return [json.loads(file.read_text()) for file in files]

    def processes(self) -> list[psutil.Process]:
        """All that was started here and has not ended, whoever its parent is by now."""
        return [process for process in psutil.process_iter() if self.is_ours(process)]

    def is_ours(self, process: psutil.Process) -> bool:
        try:
            ended = process.status() == psutil.STATUS_ZOMBIE
            return not ended and process.environ().get("TMPDIR") == self.env["TMPDIR"]
        except psutil.Error:
            return False


@pytest.fixture
def clone(tmp_path):
    clone = Clone(tmp_path)
    yield clone
    for process in clone.processes():
        process.kill()
    for started in clone.started:
        started.communicate()


@pytest.fixture
def bare_python(tmp_path):
    """A python that has none of the packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    return tmp_path / "bare"


def test_dry_run_prints_a_line_to_paste_and_starts_nothing(clone):
    secret = "wandb.notes=hf_abcdefghijklmnopqrstuvwxyz012345"
    words = [
        "standard",
        "my config.yaml",
        "note=two words",
        secret,
        "--dry-run",
        "--",
        "--max_restarts",
        "1",
    ]
    code, stdout, stderr = clone.run(clone.path / "launch.sh", *words, NPROC="2")
    command = shlex.split(stdout.splitlines()[0])
    assert code == 0
    assert {"ISOBATCH_WORLD_SIZE=2", "ACCELERATE_USE_CPU=true", "OMP_NUM_THREADS=1"} < set(command)
    assert command[-7:-2] == ["--max_restarts", "1", "-m", "train.standard", "my config.yaml"]
    assert command[-2:] == ["note=two words", "wandb.notes=[redacted]"]
    assert "--multi_gpu" in command
    assert "2 ranks on the CPU" in stderr
    assert not (clone.path / ".venv").exists()


def test_without_arguments_it_accumulates_on_the_quick_start_config(clone):
    _, stdout, stderr = clone.run(clone.path / "launch.sh", "--dry-run")
    command = shlex.split(stdout.splitlines()[0])
    assert command[-3:] == ["-m", "train.accumulate", f"{clone.path}/configs/digits.yaml"]
    assert "launch: no GPU visible: 1 rank on the CPU; NPROC=2 for more" in stderr


def test_two_ranks_are_two_processes_that_know_of_each_other(clone):
    process = clone.launch("mine.yaml", "batch.micro=4", NPROC="2")
    assert process.wait(60) == 0, process.stderr.read()
    ranks = clone.ranks(2)
    assert [rank["env"]["WORLD_SIZE"] for rank in ranks] == ["2", "2"]
    assert [rank["env"]["ISOBATCH_WORLD_SIZE"] for rank in ranks] == ["2", "2"]
    assert ranks[0]["pid"] != ranks[1]["pid"]
    assert ranks[0]["argv"][1:] == ["mine.yaml", "batch.micro=4", f"out={clone.out}"]
    assert not list(clone.out.parent.glob("isobatch.*")), "its own temporary folder is left"


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize(
    ("words", "code"),
    [("code=0", 0), ("code=2", 2), ("code=75", 75), ("exit=3", 1), ("code=0 exit=3 exits=last", 1)],
)
def test_exit_code(clone, nproc, words, code):
    words = words.replace("last", str(nproc - 1)).split()
    assert clone.launch(*words, NPROC=str(nproc)).wait(60) == code
    assert len(clone.ranks(nproc)) == nproc


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_reaches_each_rank_once_and_no_helper_of_a_rank(clone, nproc, name):
    process = clone.launch("signals=1", "code=75", "helper=ends", NPROC=str(nproc))
    clone.ranks(nproc)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=60)
    ranks = clone.ranks(nproc)
    assert process.returncode == 75
    assert [rank["got"] for rank in ranks] == [[name]] * nproc
    assert all(rank["helper_lives"] for rank in ranks), "a signal to a data worker kills the step"
    assert not clone.processes()
    assert "Traceback" not in stderr, "a clean stop ends in peace"


@pytest.mark.parametrize(("nproc", "name", "code"), [(1, "SIGINT", 130), (2, "SIGTERM", 143)])
def test_a_signal_before_the_ranks_can_hear_it_ends_all(clone, nproc, name, code):
    process = clone.launch("deaf=40", NPROC=str(nproc))
    end = time.monotonic() + 40
    while sum(is_rank(process, nproc) for process in clone.processes()) < nproc:
        assert time.monotonic() < end, "the ranks did not start"
        time.sleep(0.05)
    begun = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() < begun + 15
    assert f"launch: {name} before training began: nothing to save" in stderr
    assert "KeyboardInterrupt" not in stderr
    assert not clone.processes()


def is_rank(process: psutil.Process, nproc: int) -> bool:
    try:
        return "train.accumulate" in process.cmdline() and (
            nproc == 1 or "RANK" in process.environ()
        )
    except psutil.Error:  # it has just ended
        return False


def test_nohup_goes_on_after_the_terminal_and_still_stops_when_asked(clone):
    process = clone.start(
        "nohup", clone.path / "launch.sh", "signals=1", "code=75", f"out={clone.out}"
    )
    clone.ranks(1)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert clone.ranks(1)[0]["got"] == ["SIGTERM"]


@pytest.mark.parametrize("nproc", [1, 2])
def test_only_a_ctrl_c_some_seconds_after_the_first_is_handed_on_too(clone, nproc):
    process = clone.launch("signals=2", NPROC=str(nproc))
    clone.ranks(nproc)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None, "an impatient finger lost the save"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, "nobody wrote how it ended"
    assert [rank["got"] for rank in clone.ranks(nproc)] == [["SIGINT", "SIGINT"]] * nproc


@pytest.mark.parametrize(("nproc", "to"), [(1, "launch.sh"), (2, "launch.sh"), (2, "torchrun too")])
def test_ranks_that_do_not_stop_are_killed_when_their_time_is_over_and_not_before(clone, nproc, to):
    process = clone.launch(
        "signals=9", "helper=stays", NPROC=str(nproc), TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3"
    )
    ranks, start = clone.ranks(nproc), time.monotonic()
    process.send_signal(signal.SIGTERM)
    if to == "torchrun too":  # as a scheduler does that signals all processes of a job
        os.kill(ranks[0]["parent"], signal.SIGTERM)
    while time.monotonic() < start + 2.5:
        assert all(psutil.pid_exists(rank["pid"]) for rank in ranks), "killed while there was time"
        time.sleep(0.1)
    assert process.wait(60) == 143
    assert time.monotonic() < start + 6, "their time was over"
    assert not clone.processes()


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_ranks_that_hang(clone):
    process = clone.launch("signals=9", "helper=stays", NPROC="2")
    clone.ranks(2)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(2.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert time.monotonic() < start + 15
    assert not clone.processes()


def test_the_ranks_have_the_time_that_the_example_for_slurm_leaves(clone):
    _, stdout, _ = clone.run(clone.path / "launch.sh", "--dry-run")
    (left,) = re.findall(
        r"^#SBATCH --signal=B:USR1@(\d+)$",
        (ROOT / "scripts" / "slurm.sbatch").read_text(),
        re.MULTILINE,
    )
    assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={left}" in shlex.split(stdout.splitlines()[0])


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_rank_that_was_killed_is_started_again_where_that_is_asked_for(clone, nproc):
    words = ["signals=1", "code=75", f"out={clone.out}", "--", "--max_restarts", "2"]
    process = clone.start(clone.path / "launch.sh", *words, NPROC=str(nproc))
    first = clone.ranks(nproc)
    for rank in first:
        os.kill(rank["pid"], signal.SIGKILL)
        (clone.out / f"rank-{rank['env'].get('RANK', '0')}.json").unlink(missing_ok=True)
    again = clone.ranks(nproc)
    assert [rank["env"]["TORCHELASTIC_RESTART_COUNT"] for rank in again] == ["1"] * nproc
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert not clone.processes()


def test_a_lone_rank_that_accelerate_would_not_restart_is_refused(monkeypatch):
    monkeypatch.setattr(choose, "ask_torch", lambda named: cards(0))
    words, file = parse(["my.yaml", "--", "--max-restarts=3", "--num_processes", "1"]), find(None)
    with pytest.raises(LaunchRefused, match=r"--num_processes 1, beside(.|\n)*run:  NPROC=1"):
        build(words, file, choose.choose(words, file, {}), 120)


def test_ranks_save_when_their_launcher_is_killed(clone):
    process = clone.launch("signals=1", "code=75", NPROC="2")
    os.kill(clone.ranks(2)[0]["parent"], signal.SIGKILL)
    assert process.wait(60) == 75
    assert not clone.processes()


def test_a_plan_needs_no_ranks(clone):
    process = clone.launch("--plan", "code=0", "exit=2", NPROC="3")
    assert process.wait(60) == 2, "the exit code as it comes"
    env = clone.ranks(1)[0]["env"]
    assert env["ISOBATCH_WORLD_SIZE"] == "3"
    assert not {"ISOBATCH_ENDED", "WORLD_SIZE"} & set(env)


@pytest.mark.parametrize(
    "wrong", ["NPROC=0", "NPROC=two", "LAUNCHER=no such.yaml", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1.5"]
)
def test_a_wrong_request_is_refused_before_anything_starts(clone, wrong):
    code, _, stderr = clone.run(clone.path / "launch.sh", **dict([wrong.split("=")]))
    assert code == 2
    assert wrong in stderr
    assert "run:" in stderr


def test_more_ranks_than_gpus_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(choose, "ask_torch", lambda named: cards(2))
    chosen = choose.choose(parse(["my.yaml"]), find(None), {})
    assert (chosen.number, chosen.gpus) == (2, 2)
    assert "launch: 2 GPUs visible, 2 ranks" in capsys.readouterr().err
    with pytest.raises(LaunchRefused, match="NPROC=2"):
        choose.choose(parse(["my.yaml"]), find(None), {"NPROC": "3"})


def test_a_launcher_file_of_the_users_own_says_how_many_ranks(tmp_path, capsys):
    # Given one that `accelerate config` wrote.
    (tmp_path / "mine.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 3\n")
    file, words = find(str(tmp_path / "mine.yaml")), parse(["my.yaml"])
    assert choose.choose(words, file, {}).number == 3
    capsys.readouterr()
    assert choose.choose(words, file, {"NPROC": "2"}).number == 2
    assert f"NPROC=2 overrides num_processes of {file.path}=3" in capsys.readouterr().err


def test_an_installed_package_does_not_stand_before_the_modules_of_python(monkeypatch):
    monkeypatch.setattr(choose, "ask_torch", lambda named: cards(0))
    words, file = parse(["my.yaml"]), find(None)
    ranks = choose.choose(words, file, {})
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert build(words, file, ranks, 120).variables["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    monkeypatch.setattr(launch_command, "IS_CLONE", False)
    assert build(words, file, ranks, 120).variables["PYTHONPATH"] == str(Path.cwd())


@pytest.mark.parametrize(
    ("how", "direct"),
    [("", True), ("-- --cpu", True), ("-- --quiet", False), ("file", False)],
)
def test_one_rank_needs_no_launcher_of_its_own_unless_something_asks_for_it(
    tmp_path, how, direct, monkeypatch
):
    monkeypatch.setattr(choose, "ask_torch", lambda named: cards(0))
    (tmp_path / "mine.yaml").write_text("distributed_type: 'NO'\nenable_cpu_affinity: true\n")
    file = find(str(tmp_path / "mine.yaml") if how == "file" else None)
    words = parse(["my.yaml", *how.replace("file", "").split()])
    command = build(words, file, choose.choose(words, file, {}), 120)
    assert ("accelerate.commands.launch" not in command.words) == direct


@pytest.mark.parametrize("kind", ["SLURM_JOB_ID", "VIRTUAL_ENV"])
def test_no_environment_is_made_in_a_job_or_beside_an_active_one(clone, bare_python, kind):
    env = {"PATH": f"{bare_python}/bin:/usr/bin:/bin", kind: str(bare_python)}
    code, _, stderr = clone.run(clone.path / "launch.sh", **env)
    assert code == 1
    assert "run:" in stderr
    assert {"SLURM_JOB_ID": "login node", "VIRTUAL_ENV": "lacks torch, accelerate"}[kind] in stderr
    _, stdout, stderr = clone.run(
        clone.path / "launch.sh", "--dry-run", "my.api_key=SECRETSECRET", **env
    )
    assert "SECRETSECRET" not in stdout + stderr
    assert not (clone.path / ".venv").exists()


def test_a_link_is_used_as_it_is_and_nothing_is_installed_through_it(clone, bare_python):
    env, venv = {"PATH": "/usr/bin:/bin"}, clone.path / ".venv"
    venv.symlink_to(sys.prefix)
    process = clone.launch("--plan", "code=0", **env)
    assert (process.wait(60), f"environment: {venv}/bin/python" in process.stderr.read()) == (
        0,
        True,
    )

    venv.unlink()
    venv.symlink_to(bare_python)
    before = sorted(bare_python.rglob("*"))
    code, _, stderr = clone.run(clone.path / "launch.sh", "--plan", **env)
    assert code == 1
    assert "it lacks torch" in stderr
    assert "rm .venv, where that is a link" in stderr
    assert sorted(bare_python.rglob("*")) == before


class TestStamp:
    """When .venv is installed anew. Its python is a stub that notes what pip was asked for."""

    @pytest.fixture(autouse=True)
    def stub(self, clone, bare_python):
        self.clone, self.log, python = (
            clone,
            clone.out / "pip.log",
            clone.path / ".venv" / "bin" / "python",
        )
        python.parent.mkdir(parents=True)
        note, fail = f'echo "$5" >>"{self.log}"', f'[ ! -e "{clone.out}/offline" ]'
        python.write_text(f'#!/bin/sh\n[ "$3" = install ] || exit 0\n{note}\nsleep 0.3\n{fail}\n')
        python.chmod(0o755)
        clone.env["PATH"] = f"{bare_python}/bin:/usr/bin:/bin"

    def prepare(self, extras: str) -> subprocess.Popen[str]:
        script = 'source "$1/scripts/environment.sh" && use_environment "$1" "$2" && echo "$PYTHON"'
        return self.clone.start(
            "bash", "-euo", "pipefail", "-c", script, "bash", self.clone.path, extras
        )

    def installed(self, extras: str) -> list[str]:
        """What pip was asked to install while the environment was prepared."""
        self.log.write_text("")
        stdout, stderr = (process := self.prepare(extras)).communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert stdout.strip() == f"{self.clone.path}/.venv/bin/python"
        return self.log.read_text().split()

    def test_installs_only_what_is_new_and_forgets_no_extra(self):
        assert self.installed("dev") == [".[dev]"]
        assert self.installed("dev") == []
        assert self.installed("") == [], "dev brings all that launch.sh needs"
        assert self.installed("hf") == [".[hf,dev]"]
        (self.clone.path / "constraints.txt").write_text("torch==9\n")
        assert self.installed("") == [".[hf,dev]"]

    def test_a_failed_installation_is_done_again(self):
        constraints, offline = self.clone.path / "constraints.txt", self.clone.out / "offline"
        tested = constraints.read_text()
        assert self.installed("") == ["."]
        # When an update fails halfway, going back to what was installed before is an installation
        # too.
        constraints.write_text("torch==9\n")
        offline.touch()
        assert self.prepare("").wait(60) == 1
        offline.unlink()
        constraints.write_text(tested)
        assert self.installed("") == ["."]

    @pytest.mark.skipif(
        not shutil.which("flock"), reason="two installers cannot take turns without flock"
    )
    def test_two_at_once_install_once(self):
        assert [process.wait(60) for process in (self.prepare(""), self.prepare(""))] == [0, 0]
        assert self.log.read_text().split() == ["."]


class TestBuildOfTorch:
    """What pip is asked for. Both pythons are stubs that note it; the choice of the build is made
    for real.
    """

    STUB = """#!/bin/sh
case "$1 $2 $3" in
  -P*) exec {python} "$@" ;;
  "-m pip install") echo "$*" >>"{log}"; case "$*" in *download.pytorch.org*) exit "${{NO_INDEX:-0}}" ;; esac ;;
  "-m venv --clear") for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; echo "$*" >>"{log}" ;;
  -c*find_spec*) exit 1 ;;
  -c*importlib.metadata*) echo 2.9.1 ;;
esac
"""

    @pytest.fixture(autouse=True)
    def stub(self, clone, bare_python):
        self.clone, self.log = clone, clone.out / "pip.log"
        for name in ("python", "python3"):
            program = clone.out / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(
                self.STUB.format(python=bare_python / "bin" / "python", log=self.log)
            )
            program.chmod(0o755)
        clone.env["PATH"] = f"{clone.out}/bin:/usr/bin:/bin"

    def install(self, extras: str = "", **environment: str) -> tuple[list[str], str]:
        """(the commands, what is said)"""
        self.log.write_text("")
        script = 'source "$1/scripts/environment.sh" && use_environment "$1" "$2"'
        words = ["bash", "-euo", "pipefail", "-c", script, "bash", self.clone.path, extras]
        code, _, stderr = self.clone.run(*words, **environment)
        assert code == 0, stderr
        return self.log.read_text().splitlines(), stderr

    @property
    def torch(self) -> str:
        return next(
            line
            for line in (ROOT / "constraints.txt").read_text().splitlines()
            if line.startswith("torch==")
        )

    def test_an_old_driver_gets_the_build_for_it(self):
        nvidia_smi(self.clone.out / "bin", listed(), "550.54.14", "8.0")
        (_, torch, rest), said = self.install("vision")
        assert f"--no-deps --retries 1 {self.torch}+cu126 torchvision==" in torch
        assert torch.endswith("--extra-index-url https://download.pytorch.org/whl/cu126")
        assert rest.endswith("-e .[vision] -c constraints.txt")
        assert f"environment: torch in the build cu126 (driver 550.54.14, {A100})" in said

    def test_a_build_that_cannot_be_had_is_said(self):
        (_, torch, rest), said = self.install(NO_INDEX="1")
        assert f"{self.torch}+cpu" in torch
        assert rest.endswith("-e . -c constraints.txt")
        assert f"environment: {self.torch}+cpu cannot be had" in said

    def test_a_login_node_is_told_once(self):
        (self.clone.out / "bin" / "sbatch").touch(mode=0o755)
        (_, rest), said = self.install()
        assert "-e . -c" in rest
        assert "no GPU here, but sbatch" in said
        (torch, _), said = self.install(TORCH_BUILD="cu126")
        assert f"{self.torch}+cu126" in torch
        (self.clone.path / "pyproject.toml").write_text("[project]\n")
        (torch, _), _ = self.install()
        assert f"{self.torch}+cu126" in torch, "an update keeps it"

    def test_a_module_of_the_cluster_keeps_its_torch(self):
        nvidia_smi(self.clone.out / "bin", listed(), "550.54.14", "8.0")
        (made, rest), said = self.install(LOADEDMODULES="gcc/13:pytorch/2.9.1")
        assert "--system-site-packages" in made
        assert rest.endswith("-e . -c .venv/constraints.txt")
        constraints = (self.clone.path / ".venv" / "constraints.txt").read_text().splitlines()
        assert [line for line in constraints if line.startswith("torch")] == ["torch==2.9.1"]
        assert "accelerate==" in "\n".join(constraints)
        assert "on torch 2.9.1 of" in said
        assert "since a module brings it: gcc/13:pytorch/2.9.1" in said
