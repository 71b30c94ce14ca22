"""The weights that a run leaves: final/ and best/, of its model and of what parts export."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from train.data import save_tokenizer
from train.distributed.ranks import Ranks
from train.models.weights import divided_weights, save_weights
from train.report import best_weights
from train.report.best import Best
from train.report.folder import RunFolder

WriteWeights = Callable[[Path], None]
"""Puts the weights into a folder."""


@dataclass(frozen=True)
class RunWeights:
    """All ranks call each method together. Rank 0 writes; where weights are sharded, the others
    write their parts first.
    """

    modules: Mapping[str, nn.Module]
    """By the names of their files."""
    folder: RunFolder
    ranks: Ranks
    tokenizer: str
    """data.tokenizer, which is saved beside them."""

    def write_final(self) -> None:
        self._export(lambda write: write(self.folder.inside("final")))

    def write_best(self, best: Best) -> None:
        """Of the evaluation that is the best so far."""
        self._export(lambda write: best_weights.write(self.folder.inside(), best, write))

    def _export(self, write_with: Callable[[WriteWeights], object]) -> None:
        """`write_with(write)`, on rank 0, calls `write(folder)` once."""
        # Sharded weights are joined on disk: no rank has the memory for all of them.
        # Next to the weights, on the same disk. `inside`: not in a folder that is another run's by
        # now.
        parts = self.ranks.from_main(lambda: self.folder.inside(".divided"))
        with divided_weights(self.modules, parts, self.ranks) as divided:
            self.ranks.from_main(lambda: write_with(partial(self._write, divided)))

    def _write(self, divided: Path | None, folder: Path) -> None:
        save_beside = partial(save_tokenizer, self.tokenizer)
        # The other ranks wait meanwhile: the watchdog must not take a long write for a hang.
        with self.ranks.pulse.writing():
            for name, module in self.modules.items():
                save_weights(module, folder, name, save_beside, divided)
