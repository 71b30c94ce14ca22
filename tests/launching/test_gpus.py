"""A GPU that torch cannot use ends in a sentence that says what to install. Drivers and cards are
faked.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launching.cards import A100, cards, listed, nvidia_smi
from train.distributed.accelerator import Unsupported, check_device
from train.launching import choose, torch_builds
from train.launching.arguments import LaunchRefused, parse
from train.launching.gpus import Gpu, Seen, find_trouble, hides_all
from train.launching.launcher_file import find
from train.launching.torch_builds import Machine, look_at_machine

OLD = Machine(cards=(A100,), capabilities=((8, 0),), driver="550.54.14")
NEW = replace(OLD, driver="580.65.06")
NONE = replace(cards(0), error="no CUDA-capable device is detected")
ON_CPU = Seen(version="2.13.0+cpu")


def remedy(build: str) -> str:
    return f"-m pip install torch==2.13.0+{build}"


TROUBLES: list[tuple[str, Seen, Machine, str, str]] = [
    ("an old driver", NONE, OLD, "CUDA 13.0, which needs driver 580 or later", remedy("cu126")),
    (
        "an older driver",
        NONE,
        replace(OLD, driver="470.1"),
        "needs driver 580 or later",
        "update the driver to 580",
    ),
    ("a build for CPUs", ON_CPU, NEW, "2.13.0+cpu) was built for CPUs", remedy("cu130")),
    (
        "a build for AMD",
        Seen(version="2.13.0+rocm7", hip="7.2"),
        NEW,
        "was built for AMD GPUs",
        remedy("cu130"),
    ),
    ("both", ON_CPU, OLD, "2.13.0+cpu) was built for CPUs", remedy("cu126")),
    (
        "a new card, an old driver",
        NONE,
        replace(OLD, capabilities=((10, 0),)),
        "CUDA 13.0",
        "update the driver to 580",
    ),
    (
        "torch says no more",
        NONE,
        NEW,
        "torch cannot use them: no CUDA-capable device is detected",
        "nvidia-smi",
    ),
    (
        "no restart",
        NONE,
        replace(NEW, error="Driver/library version mismatch"),
        "library version mismatch",
        "nvidia-smi",
    ),
    (
        "no import",
        Seen(error="ImportError: libcudart.so.13"),
        NEW,
        "libcudart.so.13",
        "-c 'import torch'",
    ),
]


@pytest.mark.parametrize(
    ("seen", "machine", "why", "to_type"),
    [row[1:] for row in TROUBLES],
    ids=[row[0] for row in TROUBLES],
)
def test_a_card_that_torch_cannot_use(seen: Seen, machine: Machine, why: str, to_type: str) -> None:
    trouble = find_trouble(seen, None, lambda: machine)

    assert trouble is not None
    assert why in trouble.why
    assert to_type in trouble.remedy
    assert find_trouble(seen, "", lambda: machine) is None, "CUDA_VISIBLE_DEVICES= asks for the CPU"
    assert find_trouble(seen, None, Machine) is None, "there is no card"


def test_a_number_that_no_card_has() -> None:
    trouble = find_trouble(NONE, "7", lambda: NEW)
    assert trouble is not None
    assert (trouble.why, trouble.remedy) == (
        "CUDA_VISIBLE_DEVICES=7 names none of them",
        "unset CUDA_VISIBLE_DEVICES",
    )


@pytest.mark.parametrize(
    ("capability", "kernels", "works"),
    [
        ((8, 9), ("sm_75", "sm_86", "sm_90"), True),  # an L4 runs what was built for 8.6
        ((8, 0), ("sm_86",), False),
        ((7, 0), ("sm_75", "sm_80"), False),  # V100
        ((9, 0), ("sm_90a",), True),
        ((12, 1), ("sm_90a", "sm_120a"), False),
        ((12, 1), ("sm_100f", "sm_120f"), True),
        ((12, 0), ("sm_90", "compute_90"), True),  # compiled at the start
        ((6, 1), (), True),  # a build that does not say
    ],
)
def test_kernels_for_a_card(
    capability: tuple[int, int], kernels: tuple[str, ...], works: bool
) -> None:
    seen = replace(cards(1, "a card", capability), kernels=kernels)
    machine = Machine(cards=("a card",), capabilities=(capability,), driver="580.1")

    trouble = find_trouble(seen, None, lambda: machine)

    assert (trouble is None) == works
    if trouble is not None:
        assert f"compute capability {capability[0]}.{capability[1]}" in trouble.got
        assert "has no kernels for it" in trouble.why


def test_an_old_card_beside_a_new_one_is_left_out_by_number() -> None:
    both = replace(cards(0), gpus=(Gpu("GT 1030", (6, 1)), Gpu(A100, (8, 0))))
    trouble = find_trouble(both, None)
    assert trouble is not None
    assert trouble.remedy == "export CUDA_VISIBLE_DEVICES=1"
    old = Machine(cards=("V100",), capabilities=((7, 0),), driver="580.1")
    alone = find_trouble(cards(1, "Tesla V100", (7, 0)), "0", lambda: old)
    assert alone is not None
    assert remedy("cu126") in alone.remedy


def test_what_torch_can_open_is_right_whatever_the_driver() -> None:
    """A cluster may have CUDA's forward compatibility package."""
    assert find_trouble(cards(2), None, lambda: OLD) is None


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [
        (None, False),
        ("", True),
        ("-1", True),
        ("NoDevFiles", True),
        ("0", False),
        ("GPU-5d5b", False),
        ("MIG-c6", False),
    ],
)
def test_who_asks_for_the_cpu(visible: str | None, hidden: bool) -> None:
    assert hides_all(visible) == hidden


# What is read of a machine


@pytest.fixture(name="folder")
def machine_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For /dev and /proc; no nvidia-smi on PATH."""
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(torch_builds, "DEV", tmp_path / "dev")
    monkeypatch.setattr(torch_builds, "PROC", tmp_path / "version")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


def test_nvidia_smi_names_cards_driver_and_instances(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = nvidia_smi(folder / "bin", listed(2, instances=3), "570.86.15\n570.86.15", "8.0\n8.0")
    monkeypatch.setenv("PATH", f"{program}:/usr/bin:/bin")

    assert look_at_machine() == Machine(
        (A100, A100), ((8, 0), (8, 0)), mig_instances=6, driver="570.86.15"
    )


@pytest.mark.parametrize(
    ("driver", "files", "says", "found"),
    [
        (True, 1, "Failed to initialize NVML: Driver/library version mismatch", 1),
        (True, 1, "No devices were found", 0),  # a job that has asked for none
        (
            False,
            0,
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
            0,
        ),
    ],
)
def test_an_nvidia_smi_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, driver: bool, files: int, says: str, found: int
) -> None:
    monkeypatch.setenv("PATH", f"{nvidia_smi(folder / 'bin', says, code=18)}:/usr/bin:/bin")
    for number in range(files):
        (folder / "dev" / f"nvidia{number}").touch()
    if driver:
        (folder / "version").write_text(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n"
        )

    machine = look_at_machine()

    assert len(machine.cards) == found
    assert machine.error == (says if found else "")


def test_without_nvidia_smi_the_files_of_the_driver_are_asked(folder: Path) -> None:
    assert look_at_machine() == Machine()
    (folder / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  "
        "(dvs)\nGCC\n"
    )
    (folder / "dev" / "nvidia0").touch()
    (folder / "dev" / "nvidia1").symlink_to("/nowhere")  # as one that may not be opened
    assert look_at_machine() == Machine(("nvidia0",), driver="580.65.06")


# The build that scripts/environment.sh installs


@pytest.mark.parametrize(
    ("machine", "environment", "on_path", "build", "why"),
    [
        (OLD, {}, [], "cu126", f"driver 550.54.14, {A100}"),
        (NEW, {}, [], "", f"driver 580.65.06, {A100}"),
        (replace(NEW, capabilities=((7, 0),)), {}, [], "cu126", "driver 580.65.06"),  # V100
        (replace(OLD, capabilities=((12, 0),)), {}, [], "", "no build supports both"),
        (replace(OLD, driver="470.1"), {}, [], "", "no build supports both"),
        (Machine(), {}, [], "cpu", "no NVIDIA GPU here"),
        (Machine(), {}, ["sbatch"], "", "no GPU here, but sbatch"),
        (OLD, {"TORCH_BUILD": "cu130"}, [], "cu130", "as TORCH_BUILD says"),
    ],
)
def test_the_build_follows_driver_and_card(
    machine: Machine, environment: dict[str, str], on_path: list[str], build: str, why: str
) -> None:
    chosen, said = torch_builds.choose(machine, environment, on_path)

    assert chosen == build
    assert why in said


# The launcher and a rank


def test_the_launcher_and_a_rank_refuse_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the torch of this environment, which was built for CPUs, and an nvidia-smi that lists a
    card.
    """
    program = nvidia_smi(tmp_path / "bin", listed(), "580.65.06", "8.0")
    monkeypatch.setenv("PATH", f"{program}:{os.environ['PATH']}")
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchRefused) as launched:
        choose.choose(parse(["my.yaml"]), find(None), os.environ)
    with pytest.raises(Unsupported) as refused:
        check_device()

    assert str(launched.value) == f"launch: {refused.value}"
    assert f"got:  1 GPU ({A100}, driver 580.65.06)" in str(refused.value)
    assert "ACCELERATE_USE_CPU=true" in str(refused.value)
    for name, value in {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            check_device()


def test_a_plan_and_the_doctor_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(choose, "ask_torch", lambda named: cards(1, "Tesla V100", (7, 0)))
    with pytest.raises(LaunchRefused, match="no kernels"):
        choose.choose(parse(["my.yaml"]), find(None), {})
    for words in (["doctor", "my.yaml"], ["my.yaml", "--plan"]):
        assert choose.choose(parse(words), find(None), {}).number == 1


# MIG


def test_of_several_instances_a_process_opens_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"CUDA_VISIBLE_DEVICES": "MIG-c6d4f1ef,MIG-cba663e8"}
    monkeypatch.setattr(choose, "ask_torch", lambda named: cards(1, f"{A100} MIG 1g.5gb"))

    assert choose.choose(parse(["my.yaml"]), find(None), named).number == 1
    assert "launch: of 2 MIG instances a process opens the first alone" in capsys.readouterr().err
    with pytest.raises(
        LaunchRefused, match=r"one MIG instance only, and NCCL joins none(.|\n)*run:  NPROC=1"
    ):
        choose.choose(parse(["my.yaml"]), find(None), named | {"NPROC": "2"})
    monkeypatch.setattr(choose, "look_at_machine", lambda: Machine((A100,), mig_instances=7))
    choose.choose(parse(["my.yaml"]), find(None), {})
    assert "of 7 MIG instances" in capsys.readouterr().err
    choose.choose(parse(["my.yaml"]), find(None), {"CUDA_VISIBLE_DEVICES": "MIG-c6d4f1ef"})
    assert "instances" not in capsys.readouterr().err
