"""Stops before an update that would let the ranks drift apart, or a save of weights that are not
those of all ranks.

With one rank there is nothing to watch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from train.batch.window import Window
from train.distributed.ranks import Ranks
from train.errors import RanksDisagree, some
from train.evaluation.evaluator import Evaluate
from train.parts import Part
from train.step import ComputeGradient, Learner

EVERY_STEPS = 100
FIRST_STEPS = 3
"""Of a start, too: what is wrong with a model shows there. The third is the first that DDP reduces
by itself, where the two before have shown that their size fits (gradients/shrink.py).
"""
PIECE = 2**18
PIECE_OF_GPU = 2**22
"""Words that are added up at once. What they take, 8 bytes each, stays small beside a model; on a
CPU it stays in the cache, on a GPU it is worth a kernel.
"""


def part(learner: Learner, ranks: Ranks) -> Part:
    return Part(
        name="rank_consistency",
        gradient=lambda compute_gradient: guarded(compute_gradient, learner, ranks),
        evaluation=lambda evaluate: reduced(evaluate, learner, ranks),
        save=lambda save: agreed(save, learner, ranks),
    )


def guarded(compute_gradient: ComputeGradient, learner: Learner, ranks: Ranks) -> ComputeGradient:
    """The same function, after which weights and gradients of all ranks are compared, at some
    steps.
    """
    if ranks.world_size == 1 or learner.parallel.is_sharded:  # where nothing is held twice
        return compute_gradient
    ahead = FIRST_STEPS

    def checked(learner: Learner, window: Window) -> Tensor:
        nonlocal ahead
        losses = compute_gradient(learner, window)
        if window.k % EVERY_STEPS == 0 or ahead:
            ahead = max(0, ahead - 1)
            _check_agreement(
                _weights(learner) | _gradients(learner),
                f"step {window.k}",
                "no update was made",
                ranks,
            )
        return losses

    return checked


def reduced(evaluate: Evaluate, learner: Learner, ranks: Ranks) -> Evaluate:
    """The same function, which is not reached where the last reduction went wrong on a rank: it may
    save weights.
    """

    def checked(module: nn.Module) -> dict[str, float]:
        ranks.together(lambda: _check_whole(learner, ranks))
        return evaluate(module)

    return evaluate if ranks.world_size == 1 else checked


def agreed(save: Callable[..., None], learner: Learner, ranks: Ranks) -> Callable[..., None]:
    """The same function, before which the weights of all ranks are compared: what it saves are rank
    0's.
    """
    if ranks.world_size == 1:
        return save

    def checked(step: int, **options: object) -> None:
        ranks.together(lambda: _check_whole(learner, ranks))
        if not learner.parallel.is_sharded:
            _check_agreement(_weights(learner), f"after step {step}", "nothing was saved", ranks)
        save(step, **options)

    return checked


def _check_whole(learner: Learner, ranks: Ranks) -> None:
    """Raises what has kept a step from being applied on this rank, or its gradients from being
    reduced.
    """
    learner.parallel.check()
    ranks.alone.check_whole()


def _weights(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in learner.module.named_parameters() if p.requires_grad}


def _gradients(learner: Learner) -> dict[str, Tensor]:
    return {
        f"{name}.grad": p.grad
        for name, p in learner.module.named_parameters()
        if p.grad is not None
    }


def _check_agreement(tensors: dict[str, Tensor], when: str, so: str, ranks: Ranks) -> None:
    """Compares them bit by bit, NaN and -0.0 too: an all-reduce gives every rank the same bits."""
    piece = PIECE if next(iter(tensors.values())).device.type == "cpu" else PIECE_OF_GPU
    of_ranks = ranks.gather(_checksums(list(_joined(tensors.values(), piece))))
    apart = [str(rank) for rank, sums in enumerate(of_ranks) if sums != of_ranks[0]]
    if apart:
        # Only now, on all ranks: which tensors they are.
        by_name = {
            name: _checksums(list(_joined([tensor], piece))) for name, tensor in tensors.items()
        }
        named = ranks.gather(by_name)
        differing = [
            name for name in by_name if any(other[name] != named[0][name] for other in named)
        ]
        raise RanksDisagree(
            f"{when}: rank(s) {', '.join(apart)} differ from rank 0 in {some(differing, 5)}; {so}. "
            "Is something changed on one rank only (a parameter, a hook, a branch that depends on "
            "the rank), or are the machines of different kinds?"
        )


def _joined(tensors: Iterable[Tensor], piece: int) -> Iterator[Tensor]:
    """The words of all tensors, one after the other, in pieces: few kernels on a GPU, whatever
    their sizes.
    """
    waiting: list[Tensor] = []
    count = 0
    for tensor in tensors:
        for part in _words(tensor).split(piece):
            if waiting and count + len(part) > piece:
                yield torch.cat(waiting)
                waiting.clear()
                count = 0
            waiting.append(part)
            count += len(part)
    yield torch.cat(waiting)


def _words(tensor: Tensor) -> Tensor:
    """Its bits, as integers of 16 or 32 bits: flat."""
    return tensor.reshape(-1).view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _checksums(pieces: Sequence[Tensor]) -> list[int]:
    """Of each: the sum of word times a number that belongs to its place, modulo 2**64. The host
    waits for the device.

    The numbers are odd, so one word that differs is always seen; they have no pattern, so that
    neither is a swap, nor a sign that is wrong everywhere, made up for by other places. Integers
    add up to the same in any order.
    """
    longest = max(len(piece) for piece in pieces)
    # splitmix64
    places = torch.arange(1, longest + 1, device=pieces[0].device) * -0x61C8864680B583EB
    places = (places ^ (places >> 30)) * -0x40A7B892E31B1A47 | 1
    return torch.stack([piece.long().mul_(places[: len(piece)]).sum() for piece in pieces]).tolist()
