"""--smoke: two steps, an evaluation, a save, a reload and a row, in a temporary folder."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.config import Config, Loaded
from train.config.recipe import Duration
from train.config.schema import Checkpoint, Log, Profile
from train.models.weights import FINAL, load_final

NAME = "smoke"


@contextmanager
def smoke(loaded: Loaded, is_main: bool) -> Iterator[Loaded]:
    """Everything that a run of this config does, once and small; keeps nothing."""
    with tempfile.TemporaryDirectory(prefix="isobatch-smoke-") as folder:
        yield dataclasses.replace(loaded, config=_small(loaded.config, folder))
        run_folder = Path(folder) / NAME
        # final/ is missing where the run has failed.
        if is_main and (run_folder / FINAL).exists():
            model = load_final(run_folder)
            num_parameters = sum(parameter.numel() for parameter in model.parameters())
            print(
                "smoke: trained, evaluated, saved and loaded again "
                f"({num_parameters:,} parameters); nothing is kept"
            )


def _small(config: Config, folder: str) -> Config:
    # W&B's own code runs, and nothing is sent.
    mode = "disabled" if config.wandb.mode == "disabled" else "offline"
    return dataclasses.replace(
        config,
        name=NAME,
        output_dir=folder,
        duration=Duration(steps=2),
        log=Log(every_steps=1),
        checkpoint=Checkpoint(resume="never"),
        profile=Profile(),
        wandb=dataclasses.replace(config.wandb, mode=mode, log_model=False),
    )
