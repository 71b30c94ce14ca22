"""What is recorded of where a run ran: true, cheap, and without secrets."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from train.report import environment as module
from train.report.environment import environment, git_patch, private

COMMIT = [
    "-c",
    "user.name=me",
    "-c",
    "user.email=me@example.org",
    "commit",
    "-q",
    "--allow-empty",
    "-m",
    "first",
]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean repository with one commit, which is the current folder."""
    git(tmp_path, "init", "-q", "-b", "trunk")
    git(tmp_path, "remote", "add", "origin", "https://me:canary-in-remote@example.org/me/code.git")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, *COMMIT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_git_state(repository: Path) -> None:
    state = environment(["train.accumulate"], "digits.yaml")["git"]
    assert state == {
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "trunk",
        "dirty": False,
        "remote": "https://example.org/me/code.git",
    }
    (repository / "code.py").write_text("x = 2\n")
    assert environment([], "digits.yaml")["git"]["dirty"]


def test_a_detached_head_has_no_branch(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    assert "branch" not in environment([], "digits.yaml")["git"]


def test_without_git(no_git: None) -> None:
    assert "git" not in environment([], "digits.yaml")
    assert git_patch() is None


def test_outside_of_a_repository_it_is_that_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = git(Path(module.__file__).parent, "rev-parse", "HEAD")
    assert environment([], "digits.yaml")["git"]["commit"] == here


def test_secrets_do_not_appear(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-in-variable")
    argv = [
        "train",
        "data.args.token=canary-in-override",
        "--password",
        "canary-in-option",
        "x=canary-in-variable",
    ]
    text = json.dumps(environment(argv, "digits.yaml"))
    assert "canary" not in text
    assert "data.args.token=[redacted]" in text


def test_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    facts = environment(["train.accumulate", "digits.yaml"], Path("digits.yaml"))
    assert facts["launcher"]["WORLD_SIZE"] == "2"
    assert facts["launcher"]["SLURM_JOB_ID"] == "77"
    assert facts["command"] == "train.accumulate digits.yaml"
    assert {"torch", "omegaconf"} <= facts["packages"].keys()
    assert facts["memory_gib"] > 0
    assert facts["devices"]
    assert None not in facts.values()
    json.dumps(facts)


def test_cheap(repository: Path) -> None:
    def seconds() -> float:
        started = time.perf_counter()
        environment([], "digits.yaml")
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.05


def test_private_names_no_machine_person_or_address(repository: Path) -> None:
    public = private(environment(["train"], "/home/me/digits.yaml"))
    assert not {"host", "command", "config_path"} & public.keys()
    assert public["git"].keys() == {"commit", "dirty"}
    assert "packages" in public
    assert private({}) == {}


def test_patch_applies_to_the_commit(repository: Path) -> None:
    assert git_patch() is None
    (repository / "code.py").write_text("x = 2\n")
    (repository / "new.py").write_text("")
    patch = git_patch()
    assert patch
    assert patch.startswith("# not in git: new.py\ndiff --git ")
    git(repository, "checkout", "-q", "code.py")
    (repository / "git.patch").write_text(patch)
    git(repository, "apply", "git.patch")
    assert (repository / "code.py").read_text() == "x = 2\n"


def test_patch_is_redacted(repository: Path) -> None:
    (repository / "code.py").write_text('api_key = "canary-in-code"\ntoken = next(tokens)\n')
    (repository / "mine.yaml").write_text("token: canary-in-yaml\n")
    git(repository, "add", ".")
    patch = git_patch() or ""
    assert "canary" not in patch
    assert '+api_key = "[redacted]"\n+token = next(tokens)' in patch
    assert "+token: [redacted]" in patch


def test_a_huge_patch_is_refused_aloud(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_PATCH_MB", 0.001)
    (repository / "code.py").write_text("x = 1\n" * 1000)
    assert "not kept" in (git_patch() or "")
