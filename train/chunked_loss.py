"""The loss of a language model in chunks of tokens: never all logits at once.

For 8,192 tokens and a vocabulary of 128,000 the logits take 3.9 GiB in float32, and their gradient
as much again. The logits of a chunk are computed again in the backward pass.

Not by torch's own function (2.13, nn.functional.linear_cross_entropy): it ignores autocast, gives a
sum of bf16 numbers in bf16, and does not exist in torch 2.8. Here a chunk is plain torch under
torch's activation checkpointing, so that autocast, a scaled loss, tied weights and float64 work as
elsewhere.
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
TOKENS = 1024
"""In a chunk, where memory.chunked_loss=true."""


class NoChunks(UserError):
    """memory.chunked_loss is set, but the model or the task cannot compute its loss in chunks."""


@dataclass(frozen=True)
class Head:
    """The last layer of a language model: logits = finish(linear(hidden, weight, bias))."""

    weight: Tensor
    bias: Tensor | None = None
    finish: Callable[[Tensor], Tensor] = unchanged


class TokenLoss:
    """The sum of the cross-entropies of a batch, which a model returns in place of its logits.

    A task calls model(inputs, loss=TokenLoss(labels, task.chunk)), and the model returns
    loss(hidden, Head(weight)), where `hidden` (samples, T, width) enters its last layer. It is
    computed inside the model's forward, like everything that uses weights: a wrapper such as DDP
    must see it.
    """

    def __init__(self, labels: Tensor, tokens: int, weights: Tensor | None = None) -> None:
        """labels (samples, T), -100 for none; `tokens` in a chunk; `weights` (samples, T): of each
        label, 1 by default.
        """
        self._labels = labels
        self._tokens = tokens
        self._weights = weights

    @torch.compiler.disable  # else it would be compiled again for each number of chunks
    def __call__(self, hidden: Tensor, head: Head) -> Tensor:
        """0-dim; float32, or float64 where the model is."""
        # (samples, T, width) to (samples * T, width): a chunk is a number of tokens, whatever the
        # samples.
        columns = [hidden.flatten(0, 1), self._labels.flatten()]
        if self._weights is not None:
            columns.append(self._weights.flatten())
        # Once for all chunks, outside of the checkpoint: autograd adds up their gradients in this
        # tensor.
        weight = _summed_wide(head.weight)
        bias = None if head.bias is None else _summed_wide(head.bias)

        def chunk_sum(states: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
            # Narrowed again in each chunk: the product is computed in the type in which the model
            # computes.
            dtype = head.weight.dtype
            logits = linear(states, weight.to(dtype), None if bias is None else bias.to(dtype))
            return nats(head.finish(logits), labels, weights)

        sums = []
        # Views: nothing is copied. The last chunk may be shorter.
        chunks = [torch.split(column, self._tokens) for column in columns]
        for chunk in zip(*chunks, strict=True):
            # The head draws no random numbers: there is no generator to restore.
            loss = checkpoint(chunk_sum, *chunk, use_reentrant=False, preserve_rng_state=False)
            sums.append(loss)
        # By stack and not by +=: one sum over all chunks, in the wide type.
        return torch.stack(sums).sum()


def _summed_wide(parameter: Tensor) -> Tensor:
    """The same numbers, as a new tensor in float32 or wider: its gradient is the sum over the
    chunks, which bf16 would round at each addition.

    A view also where it is wide already: autocast caches one narrow copy of a parameter for all of
    its uses, whose gradient would be summed in bf16, but it caches none of a view.
    """
    return parameter.float() if parameter.dtype in NARROW else parameter.view_as(parameter)


def nats(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum of the cross-entropies of the labels that are not -100, each times its weight.

    logits (tokens, vocabulary); labels, weights (tokens,).
    """
    # float32 at least: in bf16 a logit near 20 has steps of 0.125.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if weights is None:
        return cross_entropy(wide, labels.long(), ignore_index=IGNORED, reduction="sum")
    # cross_entropy's own `weight` is one of classes; these are of tokens.
    each = cross_entropy(wide, labels.long(), ignore_index=IGNORED, reduction="none")
    return (each * weights.to(each.dtype)).sum()


def chunk_loss(module: nn.Module, task: Any, configured: bool | int) -> None:
    """Set up a task's loss in chunks; `configured`: memory.chunked_loss. Raises NoChunks."""
    if not configured:
        return
    model = type(module).__name__
    kind = type(task)
    off = "Set: memory.chunked_loss=false"
    # Of the class: the task itself gets its `chunk` below, and may have it from an earlier call.
    if not hasattr(kind, "chunk"):
        raise NoChunks(
            f"memory.chunked_loss: {kind.__name__} has no loss of tokens to cut; task=causal_lm "
            f"has. {off}"
        )
    # A subclass that overrides loss_sum alone would train on another loss than the one it was
    # given.
    if _definer(kind, "loss_sum") is not _definer(kind, "chunk"):
        raise NoChunks(
            f"memory.chunked_loss: {kind.__name__} defines its own loss_sum, which may use all "
            "logits. Have it return model(..., loss=TokenLoss(labels, self.chunk, weights)) "
            f"(train/chunked_loss.py), and write `chunk = None` in the same class. Or {off}"
        )
    if "loss" not in inspect.signature(module.forward).parameters:
        raise NoChunks(
            f"memory.chunked_loss: {model}.forward takes no `loss`. Add: `def forward(self, "
            "tokens, ..., loss=None)`, and `return loss(hidden, Head(weight))` where one is given "
            f"(train/chunked_loss.py). Or {off}"
        )
    # Now, so that a head that cannot be found ends the start and not the first step.
    find_head = getattr(module, "find_head", None)
    if find_head is not None:
        find_head()
    task.chunk = TOKENS if configured is True else int(configured)


def _definer(kind: type, name: str) -> type:
    """The class in the MRO of `kind` that defines the name."""
    return next(each for each in kind.__mro__ if name in vars(each))
