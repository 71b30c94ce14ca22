"""Activation checkpointing: blocks keep only their inputs and recompute the rest in backward."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from train.errors import UserError


class NoBlocks(UserError):
    """The model has no block that memory.activation_checkpointing could mean."""


def checkpoint_blocks(module: nn.Module, configured: bool | str) -> None:
    """Checkpoint the blocks that memory.activation_checkpointing selects.

    The outermost, where they nest. `configured`: true for the model's own method or the members of
    its nn.ModuleLists, or a pattern over module names. Raises NoBlocks where there are none.

    Only the `forward` of a block is replaced: weights, parameter names and hooks stay what they
    are. Non-reentrant checkpointing: the random numbers and the autocast of the first pass are used
    again, and the inputs need no gradient.
    """
    if not configured:
        return
    # A model that checkpoints by itself, as those of transformers do, knows its own blocks: it is
    # asked before its ModuleLists are looked at.
    enable = getattr(module, "gradient_checkpointing_enable", None)
    if configured is True and callable(enable):
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    blocks = list(_outermost(module, configured))
    if not blocks:
        raise _no_blocks(module, configured)
    # Not by a module around the block, whose name would stand in the names of the parameters. A
    # deep copy still calls the original block (train/exactness/copied_weights.py).
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def listed_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of the model's outermost nn.ModuleLists: the layers of most models."""
    return list(_outermost(module, True))


def has_blocks(module: nn.Module) -> bool:
    """Whether memory.activation_checkpointing=true would find any."""
    enable = getattr(module, "gradient_checkpointing_enable", None)
    return callable(enable) or bool(listed_blocks(module))


def _outermost(
    module: nn.Module, configured: bool | str, prefix: str = "", is_list: bool = False
) -> Iterator[nn.Module]:
    """`is_list`: the module is an nn.ModuleList, so its children are blocks."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        is_block = is_list if configured is True else fnmatchcase(path, str(configured))
        # What is inside a block is not looked at: a block within a checkpointed one would be
        # computed three times, not twice.
        if is_block:
            yield child
        else:
            is_child_list = isinstance(child, nn.ModuleList)
            yield from _outermost(child, configured, f"{path}.", is_child_list)


def _no_blocks(module: nn.Module, configured: bool | str) -> NoBlocks:
    names = []
    for name, part in module.named_modules():
        if name and next(part.parameters(), None) is not None:
            names.append(name)
    shown = ", ".join(names[:8]) or "without parameters"
    if len(names) > 8:
        shown += " ..."
    problem = f"has no module whose name fits {configured!r}"
    if configured is True:
        problem = "has no nn.ModuleList"
    example = f"{names[0]}*" if names else "blocks.*"
    return NoBlocks(
        f"memory.activation_checkpointing={configured}: {type(module).__name__} {problem}. Its "
        f"modules are {shown}. Set a pattern for its blocks, such as "
        f"memory.activation_checkpointing='{example}', or false"
    )
