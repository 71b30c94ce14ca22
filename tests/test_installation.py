"""The wheel: what is in it, and that its command works in a folder that is no clone.

The wheel is unpacked beside nothing of the repository, and takes its libraries from the environment
of these tests. So nothing is installed, and no package of ours is found but that of the wheel.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house.fresh_copy import copy_repository
from train import cli, installation
from train.cli import SUBCOMMANDS, run

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Installed:
    site: Path
    folder: Path
    """The current folder of the commands."""

    def run(self, *words: str, code: int = 0, **variables: str) -> str:
        """stdout and stderr of `isobatch WORDS`."""
        done = subprocess.run(
            [sys.executable, str(self.site / "isobatch"), *words],
            cwd=self.folder,
            env=self._environment() | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == code, printed
        return printed

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(self.site),
            "PYTHONSAFEPATH": "1",
            "ACCELERATE_USE_CPU": "true",
            "WANDB_MODE": "disabled",
        }


@pytest.fixture(name="wheel", scope="module")
def build_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From a fresh copy: setuptools would take what an earlier build left in build/."""
    clone = tmp_path_factory.mktemp("clone")
    copy_repository(clone)
    words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "."]
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=clone, check=True)
    (wheel,) = (clone / "dist").glob("isobatch-*.whl")
    return wheel


@pytest.fixture(name="installed", scope="module")
def unpack_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # What pip makes of the entry point.
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    module, _, function = entry_points.read_text().split("isobatch = ")[1].strip().partition(":")
    (site / "isobatch").write_text(f"from {module} import {function}\n{function}()\n")
    return Installed(site, tmp_path_factory.mktemp("elsewhere"))


def test_all_that_the_package_reads_is_in_the_wheel(wheel: Path) -> None:
    def files(folder: Path, name: str) -> set[str]:
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {
            f"{name}/{path.relative_to(folder)}" for path in paths if path.suffix not in (".pyc",)
        }

    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert shipped == files(ROOT / "train", "train") | files(ROOT / "configs", "train/configs")


def test_lists_its_subcommands_and_suggests_the_nearest(installed: Installed) -> None:
    printed = installed.run("--help")

    assert [line.split()[0] for line in printed.splitlines()[1:]] == list(SUBCOMMANDS)
    assert installed.run(code=2) == printed
    assert "did you mean compare?" in installed.run("compair", code=2)


def test_a_shipped_config_is_found_by_its_name(installed: Installed) -> None:
    words = ["duration={steps: 2}", "output_dir=runs", "log.every_steps=1"]

    by_name = installed.run("train", "digits.yaml", *words, "name=one")
    installed.run("train", "standard", "configs/digits.yaml", *words, "name=two")

    assert "next      isobatch evaluate runs/one" in by_name
    equal = installed.run("compare", "runs/one", "runs/two", "--assert-equal", "1e-6")
    assert "equal within 1e-06" in equal
    metrics = installed.run("evaluate", "runs/one")
    assert "eval/accuracy" in json.loads(metrics[metrics.index("{") :])
    # Data of a shipped config, too.
    assert "120 samples" in installed.run("prepare", "csv.yaml")


def test_launches_two_ranks(installed: Installed) -> None:
    words = ["digits.yaml", "duration={steps: 2}", "name=launched"]

    printed = installed.run("launch", *words, NPROC="2")

    assert "launch: as ACCELERATE_USE_CPU says: 2 ranks on the CPU" in printed
    assert "on 2 ranks" in printed
    sharded = installed.run(
        "launch", *words, "--dry-run", NPROC="2", LAUNCHER="configs/accelerate/fsdp2.yaml"
    )
    assert "ACCELERATE_USE_FSDP=true" in sharded
    assert "100 samples = 2 x 50 on 2 ranks" in installed.run("plan", "digits.yaml", NPROC="2")


def test_what_new_writes_names_commands_that_exist(installed: Installed) -> None:
    printed = installed.run("new", "hearts")

    assert "isobatch launch my/hearts.yaml" in printed
    config = (installed.folder / "my" / "hearts.yaml").read_text()
    assert "isobatch verify my/hearts.yaml" in config
    assert "launch.sh" not in config
    assert installed.run("verify", "my/hearts.yaml").splitlines()[-1] == "exact"


def test_a_mistake_names_what_is_there(installed: Installed) -> None:
    printed = installed.run("train", "digts.yaml", code=2)

    assert "there is no file digts.yaml; did you mean configs/digits.yaml?" in printed
    assert str(installed.site / "train" / "configs") in installed.run("train", "x.yaml", code=2)
    assert "isobatch compare runs" in installed.run("compare", "nothing", code=2)
    assert "isobatch launch" in installed.run("launch", "--help")
    assert "launch.sh" not in installed.run("launch", "--help")


def test_a_sweep_needs_no_clone(installed: Installed) -> None:
    (installed.folder / "sweep.yaml").write_text(
        "method: grid\nparameters: {seed: {values: [0, 1]}}\n"
        "command: [./launch.sh, accumulate, configs/digits.yaml]\n"
    )

    printed = installed.run("sweep", "sweep.yaml", "duration={steps: 1}", "output_dir=swept")

    assert "sweep: 2 of 2 finished" in printed
    assert len(list((installed.folder / "swept").iterdir())) == 2


def test_the_command_starts_without_torch() -> None:
    code = "import sys; from train.cli import usage; usage(); assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_an_entry(name: str) -> None:
    assert callable(cli.entry(name))


def test_every_command_of_a_clone_exists() -> None:
    for name in (*SUBCOMMANDS, "config"):
        words = installation.command(name).split()
        if words[0] == "python" and words[1] == "-m":
            path = ROOT / words[2].replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), words
        else:
            assert (ROOT / next(word for word in words if "/" in word)).exists(), words


def test_an_unknown_subcommand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tain"]) == 2
    assert capsys.readouterr().err == (
        "isobatch: there is no subcommand tain; did you mean train?\n"
    )


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_newer_pythons_compile_it(version: str) -> None:
    """The language only: the libraries are those of the Python that runs the tests."""
    candidates = [
        *map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))),
        shutil.which(f"python{version}"),
    ]
    python = next(filter(None, candidates), None)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    code = (
        "import pathlib, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).rglob('*.py')):\n"
        "    compile(path.read_text(), str(path), 'exec')\n"
    )

    for folder in ("train", "tests", "scripts"):
        subprocess.run([python, "-c", code, str(ROOT / folder)], check=True)


def test_the_oldest_python_is_the_one_that_is_declared() -> None:
    """ast.parse knows no later syntax where it is told the oldest version."""
    for path in (ROOT / "train").rglob("*.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 11))


def test_the_wheel_has_every_package() -> None:
    """pyproject.toml lists them: setuptools finds none that is mapped to another folder."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"train": ROOT / "train", "train.configs": ROOT / "configs"}
    expected = set()
    for name, root in folders.items():
        for path in (root, *root.rglob("*")):
            if path.is_dir() and path.name != "__pycache__":
                expected.add(".".join((name, *path.relative_to(root).parts)))

    assert set(settings["packages"]) == expected
