"""--smoke: two steps, an evaluation, a save, a reload and a row, in a folder that is thrown away."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from train.config import Config, Loaded
from train.config.schema import Checkpoint, Duration, Log
from train.report import FINISHED
from train.saved import load_final

NAME = "smoke"


def smoke(loaded: Loaded, train: Callable[[Loaded], int], is_main: bool) -> int:
    """Everything that a run of this config does, once and small; keeps nothing. Returns the run's exit code."""
    with tempfile.TemporaryDirectory(prefix="isobatch-smoke-") as folder:
        code = train(dataclasses.replace(loaded, config=_small(loaded, folder)))
        if code == FINISHED and is_main:
            parameters = sum(p.numel() for p in load_final(Path(folder) / NAME).parameters())
            print(f"smoke: trained, evaluated, saved and loaded again ({parameters:,} parameters); nothing is kept")
    return code


def _small(loaded: Loaded, folder: str) -> Config:
    config = loaded.config
    return dataclasses.replace(
        config,
        name=NAME,
        output_dir=folder,
        duration=Duration(steps=2),
        log=Log(every_steps=1),
        checkpoint=Checkpoint(resume="never"),
        wandb=dataclasses.replace(config.wandb, mode="offline" if config.wandb.mode != "disabled" else "disabled"),
    )
