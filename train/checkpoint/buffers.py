"""The buffers of each rank in a checkpoint: those that rank 0's weights do not tell."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.checkpoint.tensors import known, restored, separate
from train.distributed.ranks import Ranks


class RankBuffers:
    """While training, each rank has its own where they follow the data: running statistics, queues,
    codebooks.

    model.safetensors holds rank 0's, those that state_dict names. A rank's file holds what is not
    as there: of rank 0 the others (persistent=False) where training has changed them, of each other
    rank all that are not as rank 0's.
    """

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        """To be made while the buffers are as the constructor has made them."""
        self._module, self._ranks = module, ranks
        self._made = _digests(_unnamed(module))

    def own(self) -> dict[str, Tensor]:
        """Those that this rank's file holds; all ranks call it together."""
        buffers = dict(self._module.named_buffers())
        if self._ranks.is_main:
            buffers = _unnamed(self._module)
        expected = self._made
        if self._ranks.world_size > 1:
            of_main = self._ranks.from_main(lambda: _digests(dict(self._module.named_buffers())))
            if not self._ranks.is_main:
                expected = of_main
        found = _digests(buffers)
        return {
            name: buffer for name, buffer in buffers.items() if found[name] != expected.get(name)
        }

    @torch.no_grad()
    def read(self, folder: Path, same_ranks: bool) -> None:
        """Bring them to where they were; on another number of ranks rank 0's count."""
        files = [folder / file_of(0)]
        if same_ranks and not self._ranks.is_main:
            files.append(folder / file_of(self._ranks.rank))
        buffers = dict(self._module.named_buffers())
        for file in files:
            for name, stored in load_file(str(file)).items() if file.is_file() else ():
                buffers[name].copy_(restored(stored, buffers[name]))


def file_of(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"


def write_buffers(file: Path, buffers: Mapping[str, Tensor]) -> None:
    save_file({name: known(tensor) for name, tensor in separate(buffers).items()}, str(file))


def _unnamed(module: nn.Module) -> dict[str, Tensor]:
    """Those that state_dict leaves out."""
    found = {}
    for prefix, part in module.named_modules():
        for name in sorted(part._non_persistent_buffers_set):
            buffer = part._buffers.get(name)
            if buffer is not None:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _digests(buffers: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: sha256 of type, shape and bits}: NaN is equal to itself, and -0.0 is not 0.0."""
    found = {}
    for name, buffer in buffers.items():
        digest = hashlib.sha256(f"{buffer.dtype} {tuple(buffer.shape)}".encode())
        flat = buffer.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()
    return found
