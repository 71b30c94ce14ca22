"""Class labels: integers from 0 to the model's outputs, or -100 for none."""

from torch import Tensor

from train.batch.window import IGNORED

MAX_SHOWN = 5


def classes_of(labels: Tensor) -> Tensor:
    """Labels as integers.

    A table holds 1.0 for class 1 where a value was missing before it was cleaned.
    """
    return labels.long() if labels.dtype.is_floating_point else labels


def wrong_numbers(name: str, labels: Tensor, outputs: int) -> str | None:
    """What is wrong with a column of labels for a model with `outputs` outputs; None: nothing."""
    if labels.is_floating_point():
        return (
            f"{name} holds {labels.dtype}, where whole numbers from 0 are needed. To predict "
            "numbers, set: task=regression"
        )
    is_wrong = (labels != IGNORED) & ((labels < 0) | (labels >= outputs))
    if not is_wrong.any():
        return None
    wrong = sorted(set(labels[is_wrong].tolist()))
    shown = ", ".join(map(str, wrong[:MAX_SHOWN]))
    if len(wrong) > MAX_SHOWN:
        shown += ", ..."
    sample = is_wrong.nonzero()[0, 0].item()
    # More outputs do not help against a negative label.
    more_outputs = f"a model with {wrong[-1] + 1} outputs, or " if wrong[0] >= 0 else ""
    return (
        f"{name} holds {shown} ({int(is_wrong.sum())} of {labels.numel():,}, the first in sample "
        f"{sample}), but the model has {outputs} outputs: it takes 0 to {outputs - 1}, and "
        f"{IGNORED} for none. It takes {more_outputs}other labels"
    )
