"""The buffers of each rank in a checkpoint: those that rank 0's model.safetensors does not hold."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.checkpoint.tensors import from_storable, separate, storable
from train.distributed.ranks import Ranks


class RankBuffers:
    """While training, each rank has its own where they follow the data: running statistics, queues,
    codebooks.

    model.safetensors holds rank 0's, those that state_dict names. A rank's file holds what is not
    as there: of rank 0 the others (persistent=False) where training has changed them, of each other
    rank all that are not as rank 0's.
    """

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        """To be called while the buffers are as the model's constructor has left them."""
        self._module = module
        self._ranks = ranks
        # Digests, not copies: they are compared at each save, and cost no memory.
        self._initial = _digests(_non_persistent(module))

    def to_save(self) -> dict[str, Tensor]:
        """Those that this rank's file holds; all ranks call it together."""
        buffers = dict(self._module.named_buffers())
        # What a reader would have without the file: the constructor's buffers, or rank 0's.
        expected = self._initial
        # A collective: all ranks get here, whatever their buffers are.
        if self._ranks.world_size > 1:
            of_main = self._ranks.from_main(lambda: _digests(buffers))
            if not self._ranks.is_main:
                expected = of_main
        # Its persistent ones are in model.safetensors, with the parameters.
        if self._ranks.is_main:
            buffers = _non_persistent(self._module)
        digests = _digests(buffers)
        # None at all where no buffer follows the data: such a rank writes no file.
        return {name: buffers[name] for name in buffers if digests[name] != expected.get(name)}

    @torch.no_grad()
    def read(self, folder: Path, same_ranks: bool) -> None:
        """Bring them to where they were; on another number of ranks rank 0's count."""
        files = [folder / buffer_file(0)]
        if same_ranks and not self._ranks.is_main:
            files.append(folder / buffer_file(self._ranks.rank))
        # Rank 0's file first. This rank's own then overwrites what differs from it.
        buffers = dict(self._module.named_buffers())
        for file in files:
            if not file.is_file():
                continue
            for name, stored in load_file(str(file)).items():
                buffers[name].copy_(from_storable(stored, buffers[name]))


def buffer_file(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"


def write_buffers(file: Path, buffers: Mapping[str, Tensor]) -> None:
    tensors = {name: storable(tensor) for name, tensor in separate(buffers).items()}
    save_file(tensors, str(file))


def _non_persistent(module: nn.Module) -> dict[str, Tensor]:
    """Those that state_dict leaves out."""
    buffers = {}
    for prefix, submodule in module.named_modules():
        for name in sorted(submodule._non_persistent_buffers_set):
            buffer = submodule._buffers.get(name)
            if buffer is not None:
                buffers[f"{prefix}.{name}" if prefix else name] = buffer
    return buffers


def _digests(buffers: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: sha256 of type, shape and bits}: NaN is equal to itself, and -0.0 is not 0.0."""
    digests = {}
    for name, buffer in buffers.items():
        digest = hashlib.sha256(f"{buffer.dtype} {tuple(buffer.shape)}".encode())
        flat = buffer.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
        digests[name] = digest.hexdigest()
    return digests
