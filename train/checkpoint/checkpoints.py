"""The checkpoints of one run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from train.batch import key_of
from train.checkpoint.choose import abandon_newer
from train.checkpoint.commit import commit
from train.checkpoint.files import MODEL, TENSORS, TRAINER, read_model, read_state, write_state
from train.checkpoint.manifest import name_of, step_of, verify
from train.generators import read_generators, seed_generators, write_generators
from train.ranks import Ranks


class HasState(Protocol):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


@dataclass(frozen=True)
class Checkpoints:
    """With plain data parallelism every rank holds the same state: rank 0 writes it, and each rank its generators."""

    folder: Path
    ranks: Ranks
    keep: int
    seed: int
    module: nn.Module
    state: Mapping[str, HasState]  # beside the module: what has to be as it was
    resumed_from: Path | None

    def save(self, step: int, first: Callable[[], object] = lambda: None) -> None:
        """Raises SaveFailed, on all ranks, where it fails on one. What is there already is not written again.

        `first`: what has to be on disk before the checkpoint is.
        """
        if self.resumed_from == self.folder / name_of(step):
            return
        state = {name: part.state_dict() for name, part in self.state.items()}  # on all ranks: they may have to talk
        commit(self.folder, step, self.keep, self.ranks, partial(self._write, state, first), self.resumed_from)

    def _write(self, state: Mapping[str, Any], first: Callable[[], object], folder: Path) -> list[str]:
        first()
        generators = folder / _name_of_rank(self.ranks.rank)
        write_generators(generators)
        if not self.ranks.is_main:
            return [generators.name]
        write_state(folder, self.module, state)
        return [MODEL, TENSORS, TRAINER, generators.name]

    def restore(self) -> None:
        """Bring module and state to where they were."""
        if self.resumed_from is None:
            return
        if self.ranks.is_main and self.resumed_from.parent == self.folder:
            abandon_newer(self.folder, self.resumed_from)
        read_model(self.resumed_from, self.module)
        saved = read_state(self.resumed_from)
        for name in self.state.keys() & saved.keys():  # what the config has switched on since begins now
            self.state[name].load_state_dict(saved[name])

    def restore_generators(self) -> None:
        """To be called last: much that is made at the start of a run draws from them.

        With another number of ranks there are none to go on with: each rank draws new ones from seed and step.
        """
        if self.resumed_from is None:
            return
        if verify(self.resumed_from, contents=False)["world_size"] == self.ranks.world_size:
            read_generators(self.resumed_from / _name_of_rank(self.ranks.rank))
        else:
            seed_generators(key_of(self.seed, 1 + self.ranks.rank, step_of(self.resumed_from)) >> 1)


def _name_of_rank(rank: int) -> str:
    return f"rank-{rank:05}.json"
