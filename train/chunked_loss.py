"""The loss of a language model without all its logits at once: those of some tokens at a time, and
again going back.

Of 8,192 tokens and 128,000 words the logits alone take 3.9 GiB in float32, and their gradient as
much again.

torch's own part (2.13, nn.functional.linear_cross_entropy) does not know autocast, gives a sum of
bf16 numbers in bf16, and is not there in torch 2.8. Here a piece is plain torch under torch's
activation checkpointing, so that autocast, a scaled loss, tied weights and float64 are what they
are elsewhere.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from train.batch.window import IGNORED
from train.errors import UserError
from train.parts import unchanged

NARROW = (torch.float16, torch.bfloat16)
TOKENS = 1024  # at a time, where memory.chunked_loss=true


class NoChunks(UserError):
    """memory.chunked_loss is asked for where model or task cannot have it."""


@dataclass(frozen=True)
class Head:
    """The last layer of a language model: logits = finish(linear(hidden, weight, bias))."""

    weight: Tensor
    bias: Tensor | None = None
    finish: Callable[[Tensor], Tensor] = unchanged


class TokenLoss:
    """The sum of the cross-entropies of all labels that count: what a model is asked for in place
    of its logits.

    A task calls model(inputs, loss=TokenLoss(labels, task.chunk)), and the model returns
    loss(hidden, Head(weight)), where `hidden` (samples, T, width) enters its last layer. Inside its
    forward, as all that uses weights.
    """

    def __init__(self, labels: Tensor, tokens: int, weights: Tensor | None = None) -> None:
        """labels (samples, T), -100 for none; `tokens` at a time; `weights` (samples, T): what each
        label counts.
        """
        self._labels = labels
        self._tokens = tokens
        self._weights = weights

    @torch.compiler.disable  # a compiled model would be compiled anew for each number of pieces
    def __call__(self, hidden: Tensor, head: Head) -> Tensor:
        """0-dim; float32, or float64 where the model is."""
        columns = [hidden.flatten(0, 1), self._labels.flatten()]
        if self._weights is not None:
            columns.append(self._weights.flatten())
        weight = _summed_wide(head.weight)
        bias = None if head.bias is None else _summed_wide(head.bias)

        def of_piece(states: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
            own = head.weight.dtype
            logits = linear(states, weight.to(own), None if bias is None else bias.to(own))
            return nats(head.finish(logits), labels, weights)

        sums = []
        for piece in zip(*(torch.split(column, self._tokens) for column in columns), strict=True):
            # The head draws no random numbers.
            sums.append(checkpoint(of_piece, *piece, use_reentrant=False, preserve_rng_state=False))
        return torch.stack(sums).sum()


def _summed_wide(parameter: Tensor) -> Tensor:
    """The same numbers; what the pieces give for them is added up in float32, for parameters in
    bf16 too.

    And under autocast: it keeps one narrow copy of a parameter for all of its uses, but none of
    what is made of one.
    """
    return parameter.float() if parameter.dtype in NARROW else parameter.view_as(parameter)


def nats(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum of the cross-entropies of all labels that count, each times its weight. logits
    (tokens, vocabulary).
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if weights is None:
        return cross_entropy(wide, labels.long(), ignore_index=IGNORED, reduction="sum")
    each = cross_entropy(wide, labels.long(), ignore_index=IGNORED, reduction="none")
    return (each * weights.to(each.dtype)).sum()


def chunk_loss(module: nn.Module, task: Any, wanted: bool | int) -> None:
    """Have the task ask the model for its loss in pieces, as memory.chunked_loss says. Raises
    NoChunks.
    """
    if not wanted:
        return
    model, kind = type(module).__name__, type(task)
    off = "Set: memory.chunked_loss=false"
    if not hasattr(kind, "chunk"):
        raise NoChunks(
            f"memory.chunked_loss: {kind.__name__} has no loss of tokens to cut; task=causal_lm "
            f"has. {off}"
        )
    if _definer(kind, "loss_sum") is not _definer(kind, "chunk"):
        raise NoChunks(
            f"memory.chunked_loss: {kind.__name__} has a loss_sum of its own, which may ask for "
            "all logits. Have it return model(..., loss=TokenLoss(labels, self.chunk, weights)) "
            f"(train/chunked_loss.py), and write `chunk = None` in the same class. Or {off}"
        )
    if "loss" not in inspect.signature(module.forward).parameters:
        raise NoChunks(
            f"memory.chunked_loss: {model}.forward takes no `loss`. Add: `def forward(self, "
            "tokens, ..., loss=None)`, and `return loss(hidden, Head(weight))` where one is given "
            f"(train/chunked_loss.py). Or {off}"
        )
    find_head = getattr(module, "find_head", None)
    if find_head is not None:
        find_head()
    task.chunk = TOKENS if wanted is True else int(wanted)


def _definer(kind: type, name: str) -> type:
    """Which of the classes that `kind` is made of has the name for its own."""
    return next(each for each in kind.__mro__ if name in vars(each))
