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


@dataclass(frozen=True)
class RunWeights:
    """All ranks call each method together; rank 0 writes, after the others where weights are
    divided.
    """

    modules: Mapping[str, nn.Module]
    """By the names of their files."""
    folder: RunFolder
    ranks: Ranks
    tokenizer: str
    """data.tokenizer, which is saved beside them."""

    def write_final(self) -> None:
        self._written(lambda write: write(self.folder.inside("final")))

    def write_best(self, best: Best) -> None:
        """Of the evaluation that is the best so far."""
        self._written(lambda write: best_weights.write(self.folder.inside(), best, write))

    def _written(self, place: Callable[[Callable[[Path], None]], object]) -> None:
        parts = self.ranks.from_main(lambda: self.folder.inside(".divided"))
        with divided_weights(self.modules, parts, self.ranks) as divided:
            self.ranks.from_main(lambda: place(partial(self._write, divided)))

    def _write(self, divided: Path | None, folder: Path) -> None:
        with self.ranks.pulse.writing():
            for name, module in self.modules.items():
                save_weights(module, folder, name, partial(save_tokenizer, self.tokenizer), divided)
