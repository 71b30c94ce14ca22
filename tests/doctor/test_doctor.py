"""The doctor: facts are data, so that machines can be judged that are not here."""

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import argv
from tests.launching.cards import cards
from train.doctor.__main__ import main
from train.doctor.across import compare, compare_clocks
from train.doctor.checks import check, check_names
from train.doctor.facts import Disk, Facts, Gpu, gather
from train.doctor.findings import DOUBTFUL, FINE, WRONG, Finding
from train.doctor.measure import check_sum
from train.doctor.report import lines
from train.launching.gpus import Seen
from train.launching.torch_builds import Machine

PACKAGES = {
    "torch": "2.9.0",
    "accelerate": "1.15.0",
    "datasets": "5.0.0",
    "wandb": "0.31.0",
    "omegaconf": "2.3.0",
}
H100 = Gpu("H100", 79.0, 80.0)
GOOD = Facts(
    host="node1",
    ranks_here=2,
    machines=2,
    python="3.11.7",
    packages=PACKAGES,
    requirements=("torch>=2.8,<3", "accelerate>=1.10,<2"),
    commit="0123456789abcdef",
    seen=cards(2),
    nccl="2.27.3",
    machine=Machine(("H100", "H100"), ((9, 0), (9, 0)), driver="580.65.06"),
    gpus=(H100, H100),
    resolved="10.0.0.1",
    interfaces={"eth0": "10.0.0.1", "ib0": "10.1.0.1"},
    disks={"output_dir": Disk("runs", 500, True)},
    shared_memory_gib=32,
    open_files=65_536,
    infiniband=True,
)


def test_a_good_machine_is_fine() -> None:
    assert {finding.level for finding in check(GOOD)} == {FINE}


# What is other than on a good machine, the level, and what is said.
BAD: list[tuple[dict[str, Any], str, str]] = [
    (
        {"packages": {}},
        WRONG,
        "torch, accelerate, datasets, wandb, omegaconf cannot be found. Run: pip install",
    ),
    (
        {"packages": PACKAGES | {"torch": "2.4.1"}},
        WRONG,
        "torch 2.4.1 is here, and torch<3,>=2.8 is needed. Run:",
    ),
    (
        {"gpus": (), "seen": Seen(version="2.13.0+cpu")},
        WRONG,
        "2 GPUs (H100, driver 580.65.06): this torch (2.13.0+cpu)",
    ),
    (
        {"gpus": (), "seen": replace(cards(0), error="unknown error")},
        WRONG,
        "use them: unknown error. Run: nvidia-smi",
    ),
    (
        {"gpus": (), "seen": cards(0), "variables": {"CUDA_VISIBLE_DEVICES": ""}},
        DOUBTFUL,
        "hides all. Run: unset CUDA_VISIBLE_DEVICES",
    ),
    ({"ranks_here": 4}, WRONG, "4 ranks share 2 GPU(s), and each needs its own. Set: NPROC=4"),
    (
        {"gpus": (H100, Gpu("H100", 3.0, 80.0))},
        DOUBTFUL,
        "GPU 1 has 3 of 80 GiB free: another process uses it. Run:",
    ),
    (
        {"resolved": "127.0.1.1"},
        WRONG,
        "node1 leads to 127.0.1.1, which no other machine can reach. Set: GLOO_SOCKET",
    ),
    (
        {"resolved": ""},
        WRONG,
        "node1 leads to no address. Set: GLOO_SOCKET_IFNAME=eth0, or correct /etc/hosts",
    ),
    (
        {"variables": {"NCCL_SOCKET_IFNAME": "=eth1"}},
        WRONG,
        "names eth1, which is not up here. Set one of: eth0, ib0",
    ),
    (
        {"disks": {"output_dir": Disk("runs", 0.2, True)}},
        WRONG,
        "output_dir (runs) has 0.2 GiB free. Run: df -h runs",
    ),
    (
        {"disks": {"output_dir": Disk("runs", 5, True)}},
        DOUBTFUL,
        "output_dir (runs) has 5 GiB free. Checkpoints",
    ),
    (
        {"disks": {"output_dir": Disk("runs", 500, False)}},
        WRONG,
        "output_dir (runs) cannot be written. Run: ls -ld",
    ),
    (
        {"shared_memory_gib": 0.06},
        DOUBTFUL,
        "/dev/shm has 0.06 GiB free: NCCL and data.workers need more. In a",
    ),
    ({"open_files": 256}, DOUBTFUL, "no more than 256 files may be open. Run: ulimit -n 4096"),
    (
        {"locked_memory_kib": 64},
        WRONG,
        "the limit of locked memory is 64 KiB. Run: ulimit -l unlimited",
    ),
    (
        {"variables": {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}},
        DOUBTFUL,
        "message failed. Run: unset TORCH_NCCL_ASYNC",
    ),
    (
        {"variables": {"NCCL_IB_DISABLE": "1"}},
        DOUBTFUL,
        "NCCL_IB_DISABLE=1 disables a fast connection. If it fixed nothing",
    ),
]


@pytest.mark.parametrize(("other", "level", "text"), BAD, ids=[row[2][:40] for row in BAD])
def test_what_is_bad_is_one_sentence_with_its_remedy(
    other: dict[str, Any], level: str, text: str
) -> None:
    found = [finding for finding in check(replace(GOOD, **other)) if finding.level != FINE]

    assert [finding.level for finding in found] == [level]
    assert text in found[0].text


def test_a_name_may_lead_to_the_loopback_where_nobody_else_asks_for_it() -> None:
    assert check_names(replace(GOOD, resolved="127.0.1.1", machines=1))[0].level == FINE
    named = replace(GOOD, resolved="127.0.1.1", variables={"GLOO_SOCKET_IFNAME": "eth0"})
    assert check_names(named)[0].level == FINE


@pytest.mark.parametrize(
    ("other", "level", "text"),
    [
        (
            {"packages": PACKAGES | {"torch": "2.8.0"}},
            WRONG,
            "differ in torch: 2.9.0 on node1; 2.8.0 on node2. Make",
        ),
        ({"python": "3.12.1"}, WRONG, "differ in Python: 3.11.7 on node1; 3.12.1 on node2"),
        (
            {"commit": "fedcba9876543210"},
            WRONG,
            "the commit of the code: 0123456789ab on node1; fedcba987654 on node2",
        ),
        (
            {"timeout_seconds": 60},
            WRONG,
            "differ in runtime.timeout_seconds: 1800 on node1; 60 on node2",
        ),
        (
            {"gpus": (Gpu("A100", 40, 40),)},
            DOUBTFUL,
            "different devices: H100 on node1; A100 on node2. The slowest",
        ),
    ],
)
def test_machines_that_differ(other: dict[str, Any], level: str, text: str) -> None:
    second = replace(GOOD, host="node2")
    assert compare([GOOD, second]) == []
    (found,) = compare([GOOD, GOOD, replace(second, **other), replace(second, **other)])
    assert found.level == level
    assert text in found.text


def test_clocks() -> None:
    both = [GOOD, replace(GOOD, host="node2")]
    assert compare_clocks(both, [0.0, 0.001])[0].level == FINE
    (found,) = compare_clocks(both, [0.0, -7.5])
    assert found.level == DOUBTFUL
    assert "the clock of node2 is 7.5 s behind that of node1" in found.text
    assert "Run there: chronyc makestep" in found.text


def test_a_sum_that_is_wrong_or_slow() -> None:
    assert check_sum([True, False], 0.1, 256, "cuda")[0].text.startswith(
        "the sum over the ranks is wrong on rank 1."
    )
    # Of two ranks each sends what it has once: 256 MB in 0.1 s.
    assert check_sum([True, True], 0.1, 256, "cuda")[0] == Finding(
        FINE, "all-reduce of 256 MB over 2 ranks (cuda): 2.6 GB/s"
    )
    assert check_sum([True, True], 1.0, 256, "cuda")[0].level == DOUBTFUL


def test_what_is_wrong_comes_first_and_says_where() -> None:
    facts = [GOOD, replace(GOOD, host="node2")]
    shared, bad = Finding(FINE, "all is well"), Finding(WRONG, "no disk. Run: df")
    told = lines(facts, [[shared], [shared, bad]], [Finding(DOUBTFUL, "slow. Wait")])
    assert told == [
        "wrong     node2: no disk. Run: df",
        "doubtful  slow. Wait",
        "fine      all is well",
        "doctor: 1 wrong, 1 doubtful, 1 fine; 2 ranks on 2 machines",
    ]


def test_facts_of_this_machine(tmp_path: Path) -> None:
    """Against what the machine says by other ways."""
    facts = gather(str(tmp_path / "not" / "yet"), 60)
    assert facts.host == os.uname().nodename
    assert facts.packages["torch"] == torch.__version__
    assert any(requirement.startswith("torch>=") for requirement in facts.requirements)
    assert "lo" not in facts.interfaces
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize / 2**30
    assert facts.disks["output_dir"].free_gib == pytest.approx(free, abs=1)
    assert facts.disks["output_dir"].writable
    assert not (tmp_path / "not").exists()


def doctor(environment: dict[str, str], arguments: list[str]) -> tuple[int, str]:
    os.environ.update(environment)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(arguments)
    return code, said.getvalue()


def test_two_ranks_measure_what_lies_between_them(
    run_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    (code, said), (other_code, nothing) = run_ranks(2, doctor, {}, argv(tmp_path))

    assert (code, other_code, nothing) == (0, 0, "")
    assert "all-reduce of 16 MB over 2 ranks (cpu)" in said
    assert "clocks agree within" in said
    assert f"output_dir ({tmp_path}) has" in said
    assert said.splitlines()[-1].startswith("doctor: 0 wrong,")
    assert said.splitlines()[-1].endswith("2 ranks on 1 machine")


def test_what_would_stop_a_run_is_the_exit_code_of_all_ranks(
    run_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    told = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "eth77",
    }
    (code, said), (other_code, _) = run_ranks(2, doctor, told, argv(tmp_path))

    assert (code, other_code) == (1, 1)
    assert "wrong     ACCELERATE_MIXED_PRECISION=bf16: the config says precision=fp64" in said
    assert "wrong     NCCL_SOCKET_IFNAME names eth77, which is not up here. Set one of:" in said
