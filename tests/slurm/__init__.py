"""Stand-ins of SLURM's commands: what a batch script meets."""

from tests.slurm.controller import Job, Slurm

__all__ = ["Job", "Slurm"]
