"""The checkpoints of one run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from train.checkpoint.buffers import RankBuffers, buffer_file, write_buffers
from train.checkpoint.choose import NoCheckpoint, abandon_newer
from train.checkpoint.commit import commit
from train.checkpoint.files import ExtraState, read_model, read_state, write_state
from train.checkpoint.manifest import name_of, verify
from train.distributed.ranks import Ranks
from train.errors import RunFailed, UserError, is_out_of_memory
from train.parts import HasState


class Checkpoints:
    """Saves and resumes. No random generator is saved: see train/randomness.py."""

    def __init__(
        self,
        *,
        folder: Path,
        ranks: Ranks,
        keep: int,
        module: nn.Module,
        writes_state: bool,
        resumed_from: Path | None,
        run: str | None = None,
    ) -> None:
        """`resumed_from`: the checkpoint that the run resumes from; it is read now.

        `writes_state`: whether this rank writes any of the model and the states. `run`: the id of
        the run.
        """
        self.folder = folder
        self.ranks = ranks
        self.keep = keep
        self.module = module
        self.writes_state = writes_state
        self.resumed_from = resumed_from
        self.run = run
        self._state: dict[str, HasState] = {}
        self._saved: dict[str, Any] = {}
        # Before anything is read into the module: the constructor's buffers are what a reader has
        # without a rank's file.
        self._buffers = RankBuffers(module, ranks)
        if resumed_from is not None:
            # Before the first save: commit() writes no step that is there already, so newer
            # checkpoints would stay in the place of the steps that are trained again.
            if ranks.is_main and resumed_from.parent == folder:
                abandon_newer(folder, resumed_from)
            self._read(resumed_from)
        self.add({"extra_state": ExtraState(module)})

    def _read(self, checkpoint: Path) -> None:
        # Sizes only: whoever has chosen the checkpoint has verified the contents.
        manifest = verify(checkpoint, contents=False)
        read_model(checkpoint, self.module, manifest["files"])
        # Buffers that differ belong to a rank: on another number of ranks rank 0's count
        # everywhere.
        same_ranks = manifest["world_size"] == self.ranks.world_size
        self._buffers.read(checkpoint, same_ranks)
        # A hash cannot tell that a state was written in a form that this version does not know.
        with _names_checkpoint(checkpoint):
            self._saved = read_state(checkpoint, manifest["files"])

    def add(self, states: Mapping[str, HasState]) -> None:
        """From now on these are saved too. Those that the checkpoint holds are brought to where
        they were; what is new to the run begins now.
        """
        for name, state in states.items():
            assert name not in self._state, f"two things are saved under the name {name!r}"
            self._state[name] = state
            if name in self._saved:
                assert self.resumed_from is not None
                with _names_checkpoint(self.resumed_from):
                    # Popped, so that the tensors of a state are freed once they have been taken
                    # over.
                    state.load_state_dict(self._saved.pop(name))

    def save(self, step: int, first: Callable[[], object] = lambda: None) -> None:
        """Raises SaveFailed, on all ranks, where it fails on one. What is there already is not
        written again.

        `first()` brings to disk what has to be there before the checkpoint is.
        """
        # It was verified when it was chosen: no need to look at its files again.
        if self.resumed_from == self.folder / name_of(step):
            return
        # On all ranks: they may have to talk.
        state = {name: part.state_dict() for name, part in self._state.items()}
        buffers = self._buffers.to_save()
        write = partial(self._write, state, buffers, first)
        commit(self.folder, step, self.keep, self.ranks, write, self.resumed_from, self.run)

    def _write(
        self,
        state: Mapping[str, Any],
        buffers: Mapping[str, Tensor],
        first: Callable[[], object],
        folder: Path,
    ) -> list[str]:
        first()  # here, so that an error in it counts as a failed save on all ranks
        written = []
        if buffers:
            name = buffer_file(self.ranks.rank)
            write_buffers(folder / name, buffers)
            written.append(name)
        # The list of names goes into the manifest: what is not named there is no part of the
        # checkpoint.
        if self.writes_state:
            written += write_state(folder, self.module, state, self.ranks.rank)
        return written

    def forget(self) -> None:
        """Free what was saved of things that the config has switched off since."""
        self._saved.clear()


@contextmanager
def _names_checkpoint(folder: Path) -> Iterator[None]:
    """What fails inside ends in a sentence that names the checkpoint.

    Hashes say that a file is as it was written, not that what it holds makes sense.
    """
    try:
        yield
    # These end in a sentence of their own already, or say nothing about the checkpoint.
    except (UserError, RunFailed, OSError, MemoryError):
        raise
    except Exception as error:
        # Another checkpoint would not fit in memory either.
        if is_out_of_memory(error):
            raise
        raise NoCheckpoint(
            f"{folder} cannot be resumed from: {type(error).__name__}: {str(error).strip()[:200]}. "
            "Every file is as it was written, but not what this version writes. Set: "
            "checkpoint.resume=PATH of another checkpoint"
        ) from error
