"""The processes of a job, as SLURM knows them. Imports nothing of ours: the commands are started
alone.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def processes(conf: str, job: str, step: str | None = None, steps_only: bool = False) -> list[int]:
    """All that was started there, whatever its parent or session, by what stands in its
    environment.

    slurmstepd signals all of a step: src/slurmd/slurmstepd/req.c, _handle_signal_container.
    """
    marks = [f"SLURM_CONF={conf}", f"SLURM_JOB_ID={job}"]
    if step is not None:
        marks.append(f"SLURM_STEP_ID={step}")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            in_step = any(word.startswith("SLURM_STEP_ID=") for word in words)
            if all(mark in words for mark in marks) and (in_step or not steps_only):
                found.append(int(path.name))
    return found


def send(number: int, pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
