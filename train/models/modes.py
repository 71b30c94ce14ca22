"""Train and eval mode: which modules of a model are trained, and which .eval() has frozen."""

from collections.abc import Iterator

from torch import nn

from train.errors import some


def set_training(module: nn.Module) -> list[str]:
    """Put a model into train mode, except what is frozen; returns notes for the screen.

    Libraries give models in eval mode: inside a user's wrapper, such a model would train without
    dropout. So eval mode counts as frozen only for a layer that keeps statistics (BatchNorm and the
    like), and for a module all of whose parameters are frozen, by model.freeze or its constructor.
    A model that is in eval mode as a whole trains as a whole, its BatchNorm too.
    """
    if not module.training:
        module.train()
        return [f"modes     {type(module).__name__} came in eval mode, and trains in train mode"]
    changed = []
    for name, part in _in_eval_mode(module):
        if next(_to_train(part), None) is not None:  # else it is frozen
            changed.append(f"{name} ({type(part).__name__})")
    # What is frozen is noted first: module.train() puts every part into train mode.
    trained = {id(part) for part in _to_train(module)}
    frozen = [part for part in module.modules() if not part.training and id(part) not in trained]
    module.train()  # the model's own method, which may freeze more
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


def _to_train(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all inside it that trains; nothing inside a frozen one does."""
    # A module without parameters, such as Dropout, is not frozen by that: libraries give it in eval
    # mode with the rest of the model.
    parameters = list(module.parameters())
    is_untrained = bool(parameters) and not any(p.requires_grad for p in parameters)
    if not module.training and (is_untrained or _keeps_statistics(module)):
        return
    yield module
    for child in module.children():
        yield from _to_train(child)


def _keeps_statistics(module: nn.Module) -> bool:
    """BatchNorm, InstanceNorm with running statistics, and layers written like them."""
    return getattr(module, "running_mean", None) is not None
