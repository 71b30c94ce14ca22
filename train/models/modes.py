"""Which modules of a model train in train mode, and which its owner has frozen by .eval()."""

from collections.abc import Iterator

from torch import nn

from train.errors import some


def set_training(module: nn.Module) -> list[str]:
    """Put a model into train mode, except what is frozen; notes for the screen.

    A library hands its models over in eval mode: inside a user's wrapper, that would train without
    dropout. So eval mode means "frozen" only of a layer that keeps statistics (BatchNorm and the
    like), and of modules none of whose parameters is trained: those that model.freeze or the
    constructor took out. A model that is in eval mode as a whole trains as a whole, its BatchNorm
    too.
    """
    if not module.training:
        module.train()
        return [f"modes     {type(module).__name__} came in eval mode, and trains in train mode"]
    changed = []
    for name, part in _in_eval_mode(module):
        if _trains(part):
            changed.append(f"{name} ({type(part).__name__})")
    trained = {id(part) for part in _to_train(module)}
    frozen = [part for part in module.modules() if not part.training and id(part) not in trained]
    module.train()  # the model's own, which may freeze more
    for part in frozen:
        part.training = False
    if not changed:
        return []
    return [f"modes     {some(changed)} came in eval mode, and trains in train mode"]


def _in_eval_mode(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules in eval mode, by name."""
    for name, child in module.named_children():
        if child.training:
            yield from _in_eval_mode(child, f"{path}{name}.")
        else:
            yield path + name, child


def _trains(module: nn.Module) -> bool:
    """Whether anything in it will be put into train mode."""
    return not module.training and any(True for _ in _to_train(module))


def _to_train(module: nn.Module) -> Iterator[nn.Module]:
    """All in it that trains, itself included. What is frozen keeps all that is inside as it is."""
    parameters = list(module.parameters())
    untrained = bool(parameters) and not any(p.requires_grad for p in parameters)
    if not module.training and (untrained or _keeps_statistics(module)):
        return
    yield module
    for child in module.children():
        yield from _to_train(child)


def _keeps_statistics(module: nn.Module) -> bool:
    """BatchNorm, InstanceNorm with running statistics, and whatever is written like them."""
    return getattr(module, "running_mean", None) is not None
