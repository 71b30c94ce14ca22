"""Activation checkpointing: the blocks of a model keep their inputs only, and compute the rest
again going back.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from train.errors import UserError


class NoBlocks(UserError):
    """The model has no block that memory.activation_checkpointing could mean."""


def checkpoint_blocks(module: nn.Module, wanted: bool | str) -> None:
    """Checkpoint the blocks of `module` that memory.activation_checkpointing asks for; the
    outermost where they nest.

    A block keeps its place and its name, so that weights, parameter names and hooks stay what they
    are: only its `forward` is another. Non-reentrant: the random numbers and the autocast of the
    first pass are used again, and the inputs need no gradient. Raises NoBlocks.
    """
    if not wanted:
        return
    own = getattr(module, "gradient_checkpointing_enable", None)
    if wanted is True and callable(own):
        own(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    found = list(_outermost(module, wanted))
    if not found:
        names = [
            name
            for name, part in module.named_modules()
            if name and any(True for _ in part.parameters())
        ]
        known = f"{', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" or "without parameters"
        asked = (
            "has no nn.ModuleList"
            if wanted is True
            else f"has no module whose name fits {wanted!r}"
        )
        example = f"{names[0]}*" if names else "blocks.*"
        raise NoBlocks(
            f"memory.activation_checkpointing={wanted}: {type(module).__name__} {asked}. Its "
            f"modules are {known}. Type a pattern for its blocks, such as "
            f"memory.activation_checkpointing='{example}', or false"
        )
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def listed_blocks(module: nn.Module) -> list[nn.Module]:
    """What the model's outermost nn.ModuleLists hold: the layers of most models."""
    return list(_outermost(module, True))


def has_blocks(module: nn.Module) -> bool:
    """Whether memory.activation_checkpointing=true would find any."""
    return callable(getattr(module, "gradient_checkpointing_enable", None)) or any(
        True for _ in _outermost(module, True)
    )


def _outermost(
    module: nn.Module, wanted: bool | str, prefix: str = "", listed: bool = False
) -> Iterator[nn.Module]:
    """`listed`: the module is a ModuleList, so its children are blocks."""
    for name, part in module.named_children():
        path = f"{prefix}{name}"
        if listed if wanted is True else fnmatchcase(path, str(wanted)):
            yield part
        else:
            yield from _outermost(part, wanted, f"{path}.", isinstance(part, nn.ModuleList))
