"""Labels that a model can have: whole numbers from 0 to its outputs, or -100 for none."""

from torch import Tensor

from train.batch.window import IGNORED


def classes_of(labels: Tensor) -> Tensor:
    """Labels as whole numbers: a table may hold 1.0 for class 1, where a value was missing before
    it was cleaned.
    """
    return labels.long() if labels.dtype.is_floating_point else labels


def wrong_numbers(name: str, labels: Tensor, outputs: int) -> str | None:
    """What is wrong with a column of labels, for a model with so many outputs; None: nothing."""
    if labels.is_floating_point():
        return (
            f"{name} holds {labels.dtype}, where whole numbers from 0 are needed. For numbers to "
            "come near to: " + ("task=regression")
        )
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= outputs))
    if not wrong.any():
        return None
    found = sorted(set(labels[wrong].tolist()))
    shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
    sample = wrong.nonzero()[0, 0].item()
    more = f"a model with {found[-1] + 1} outputs, or " if found[0] >= 0 else ""
    return (
        f"{name} holds {shown} ({int(wrong.sum())} of {labels.numel():,}, the first in sample "
        f"{sample}), but the model has {outputs} outputs: it takes 0 to {outputs - 1}, and "
        f"{IGNORED} for none. It takes {more}other labels"
    )
