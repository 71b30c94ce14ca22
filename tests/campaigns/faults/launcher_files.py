"""Launcher files of accelerate that ask for something else, and those that do not."""

import os
import subprocess
import sys
from pathlib import Path

from tests.campaigns.faults import compare
from tests.campaigns.faults.row import Row, folder

ROOT = Path(__file__).parents[3]
TAKEN = {
    "NO": "distributed_type: 'NO'\nnum_processes: 2\nuse_cpu: true\n",
    "MULTI_CPU": "distributed_type: MULTI_CPU\nnum_processes: 2\nsame_network: true\ndebug: true\n",
    "a bare no": (
        "distributed_type: MULTI_CPU\nnum_processes: 2\nmixed_precision: no\ndynamo_config: {}\n"
    ),
}
REFUSED = {
    "gradient_accumulation_steps": "distributed_type: 'NO'\ngradient_accumulation_steps: 4\n",
    "fsdp_offload_params": (
        "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_offload_params: true}\n"
    ),
    "mixed_precision: bf16": (
        "distributed_type: MULTI_CPU\nnum_processes: 2\nmixed_precision: bf16\n"
    ),
    "DEEPSPEED": (
        "distributed_type: DEEPSPEED\ndeepspeed_config: "
        "{zero_stage: 2, gradient_accumulation_steps: 4}\n"
    ),
    "MEGATRON_LM": (
        "distributed_type: MEGATRON_LM\nmegatron_lm_config: {megatron_lm_tp_degree: 2}\n"
    ),
    "dynamo_backend": "distributed_type: 'NO'\ndynamo_config: {dynamo_backend: INDUCTOR}\n",
    "fp8": "distributed_type: 'NO'\nmixed_precision: fp8\nfp8_config: {backend: TE}\n",
    "XLA": "distributed_type: XLA\ntpu_use_cluster: true\ntpu_name: pod\n",
    "mpirun_hostfile": "distributed_type: MULTI_CPU\nmpirun_config: {mpirun_hostfile: hosts}\n",
    "AMAZON_SAGEMAKER": "compute_environment: AMAZON_SAGEMAKER\ndistributed_type: 'NO'\n",
    "a_new_key": "distributed_type: 'NO'\na_new_key: 1\n",
}


def _launch(here: Path, text: str, *words: str) -> tuple[int, str]:
    file = here / "accelerate.yaml"
    file.write_text(text)
    environment = {
        **os.environ,
        "LAUNCHER": str(file),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "train.launch",
        "configs/digits.yaml",
        f"output_dir={here}",
        "name=run",
        *words,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def told_before_ranks_start(here: Path, full: bool) -> str:
    files = REFUSED if full else dict(list(REFUSED.items())[:3])
    for name, text in files.items():
        code, errors = _launch(here, text, "wandb.mode=disabled")
        assert code == 2, f"{name}: {code}\n{errors}"
        assert name in errors, errors
        assert " on the CPU" not in errors, f"ranks were chosen before: {errors}"
        assert "Traceback" not in errors, errors
        assert not (here / "run").exists(), f"{name}: something was started"
    taken = TAKEN if full else {}
    curves = {name: _curve(folder(here, name), text) for name, text in taken.items()}
    if full:
        alone = _curve(folder(here, "alone"), "distributed_type: 'NO'\nuse_cpu: true\n")
        apart = {name: curve for name, curve in curves.items() if curve != alone}
        assert not apart, f"{alone}\n{apart}"
    told = f"{len(files)} files refused with exit code 2, nothing started"
    return f"{told}; {len(taken)} taken, with the curve of one rank" if full else told


def _curve(here: Path, text: str) -> list[float]:
    """In float64, to the digits that no order of summation changes."""
    code, errors = _launch(
        here, text, "duration.steps=4", "log.every_steps=1", "precision=fp64", "wandb.mode=disabled"
    )
    assert code == 0, errors
    return [
        round(row["train/loss"], 9) for row in compare.rows(here / "run") if "train/loss" in row
    ]


ROWS = [
    Row(
        "61",
        "a launcher file for another engine, or with keys of the config",
        "what accelerate config writes, by python -m train.launch; those that are taken, on two "
        "ranks",
        "refused in a sentence for each key before ranks start (2); taken: the curve of one rank",
        told_before_ranks_start,
    ),
]
