"""Which machine of a job this one is, and what accelerate and torchrun are told of it."""

from pathlib import Path

import pytest

from train.launch import _forget_outer_run
from train.launching.arguments import Arguments, LaunchRefused, parse
from train.launching.launcher_file import find
from train.launching.machines import FIRST_PORT, Machines, find_machines

HEAD = "--main_process_ip node1"


def found(flags: str = "", file: Path | None = None, **environment: str) -> Machines:
    return find_machines(
        parse(["my.yaml", "--", *flags.split()]), find(str(file) if file else None), environment
    )


def slurm(**changes: str) -> dict[str, str]:
    """What srun sets for the task on the third of four nodes."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": "4",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NODEID": "2",
        "SLURM_STEP_NODELIST": "gpu[007-009,12]",
        **changes,
    }


def test_one_machine_meets_nobody():
    assert found() == Machines()
    assert found("--num_machines 1", **slurm()) == Machines()
    assert Machines().variables() == {}
    assert Machines().among(parse(["my.yaml", "--", "--nnodes=1", "--debug"])).flags == ["--debug"]


def test_slurm_says_who_and_where():
    machines = found(**slurm())
    assert (machines.number, machines.rank, machines.head, machines.job) == (
        4,
        2,
        "gpu007",
        "slurm-4711.0",
    )
    assert found(**slurm(SLURM_STEP_NODELIST="a1b[3-4],c7")).head == "a1b3"
    assert found("--main_process_port 29500", **slurm()).port == 29500


def test_jobs_that_run_side_by_side_have_ports_of_their_own():
    jobs = [found(**slurm(SLURM_JOB_ID=str(4711 + number))) for number in range(50)]
    steps = [found(**slurm(SLURM_STEP_ID=str(number))) for number in range(1, 5)]
    ports = [port for each in [*jobs, *steps] for port in (each.port, each.meeting_port)]
    assert len(set(ports)) == len(ports)
    assert all(FIRST_PORT <= port < 32_768 for port in ports)


def test_a_trial_of_a_sweep_is_one_machines_own():
    assert found(**slurm(WANDB_SWEEP_ID="sweep1")) == Machines()


def test_flags_come_before_slurm_and_that_before_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "num_machines: 2\nmachine_rank: 1\nmain_process_ip: there\nmain_process_port: "
        "29500\nrdzv_backend: static\n"
    )
    of_file = found("", tmp_path / "mine.yaml")
    assert (of_file.number, of_file.rank, of_file.head, of_file.port) == (2, 1, "there", 29500)
    both = found("--machine_rank 0", tmp_path / "mine.yaml", **slurm())
    assert (both.number, both.rank, both.head) == (4, 0, "gpu007")


def test_the_same_command_is_the_same_job_and_another_is_not():
    flags = ["--", "--num_machines", "2", "--main_process_ip", "node1", "--machine_rank"]
    jobs = [
        find_machines(parse(["my.yaml", f"name={name}", *flags, rank]), find(None), {})
        for name, rank in (("a", "0"), ("a", "1"), ("b", "1"))
    ]
    assert jobs[0].job == jobs[1].job != jobs[2].job
    assert jobs[0].port == jobs[1].port
    assert jobs[0].job.startswith("my-")
    assert found(f"--num_machines 2 --machine_rank 0 {HEAD} --rdzv_id mine").job == "mine"


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_what_accelerate_and_torchrun_are_told(backend):
    flags = (
        f"--num_machines=2 --debug --machine_rank 0 {HEAD} --main_process_port 7000 "
        f"--rdzv_backend {backend}"
    )
    arguments = parse(["my.yaml", "--", *flags.split()])
    machines = find_machines(arguments, find(None), {})
    told = machines.among(arguments)
    assert told.flags[0] == "--debug"
    assert told.flag("num_machines") == "2"
    assert told.flag("main_process_port") == "7000"
    assert machines.variables()["PET_RDZV_ID"] == machines.job
    assert (told.flag("rdzv_conf") == "is_host=1") == (backend == "c10d")
    assert machines.variables().get("PET_RDZV_ENDPOINT") == (
        "node1:7000" if backend == "c10d" else None
    )


def test_an_elastic_job():
    flags = f"--nnodes 1:2 --max_restarts 3 --machine_rank 1 {HEAD} --rdzv_conf last_call_timeout=2"
    arguments = parse(["my.yaml", "--", *flags.split()])
    machines = find_machines(arguments, find(None), {})
    told = machines.among(arguments)
    assert (told.flag("num_machines"), told.flag("nnodes"), told.flag("rdzv_backend")) == (
        "1",
        None,
        "c10d",
    )
    assert told.flag("rdzv_conf") == "is_host=0,last_call_timeout=2"
    assert machines.variables()["PET_NNODES"] == "1:2"


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        ("--num_machines two", {}, "two"),
        ("--nnodes 3:2", {}, "3:2"),
        (f"--num_machines 2 {HEAD}", {}, "no --machine_rank"),
        (f"--num_machines 2 {HEAD} --machine_rank 2", {}, "--machine_rank 2"),
        ("--num_machines 2 --machine_rank 0", {}, "no --main_process_ip"),
        (f"--num_machines 2 --machine_rank 0 {HEAD} --main_process_port 99999", {}, "99999"),
        (f"--num_machines 2 --machine_rank 0 {HEAD} --rdzv_id a/b", {}, "a/b"),
        (f"--nnodes 1:2 --machine_rank 0 {HEAD}", {}, "--max_restarts"),
        ("", slurm(SLURM_STEP_NUM_TASKS="8"), "srun --ntasks-per-node=1"),
    ],
)
def test_what_cannot_be_known_is_asked_for(flags, environment, named):
    with pytest.raises(LaunchRefused, match=named) as refused:
        found(flags, **environment)
    assert "run:  " in str(refused.value)


def test_flags_are_taken_out_with_their_values():
    arguments = Arguments(flags=["--num-machines", "2", "--debug", "--rdzv_id=x", "--log_dir", "2"])
    assert arguments.without(["num_machines", "rdzv_id"]) == ["--debug", "--log_dir", "2"]


def test_a_launch_inside_a_run_is_no_machine_of_that_runs_job():
    environment = {
        "RANK": "1",
        "PET_NNODES": "1:2",
        "PET_RDZV_ID": "outer",
        "ISOBATCH_ATTEMPT": "17",
    }
    _forget_outer_run(environment)
    assert environment == {}
    users_own = {"PET_NNODES": "1:2"}
    _forget_outer_run(users_own)
    assert users_own == {"PET_NNODES": "1:2"}
