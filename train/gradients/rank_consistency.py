"""Stops before an update that would let the ranks drift apart, or a save of differing weights.

With one rank there is nothing to compare.
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
"""Of a start, too: what is wrong with a model shows there.

The third is the first that DDP reduces by itself: in the two before it is reduced late, until they
have shown that their size fits (gradients/shrink.py).
"""
PIECE = 2**18
PIECE_OF_GPU = 2**22
"""Words that are added up at once, 8 bytes each: small beside a model.

On a CPU a piece stays in the cache, on a GPU it is worth a kernel.
"""


def part(learner: Learner, ranks: Ranks) -> Part:
    return Part(
        name="rank_consistency",
        gradient=lambda compute_gradient: check_gradients(compute_gradient, learner, ranks),
        evaluation=lambda evaluate: check_before_evaluation(evaluate, learner, ranks),
        save=lambda save: check_before_save(save, learner, ranks),
    )


def check_gradients(
    compute_gradient: ComputeGradient, learner: Learner, ranks: Ranks
) -> ComputeGradient:
    """The same function; at some steps weights and gradients of all ranks are compared after it."""
    # Under FSDP2 no two ranks hold the same part.
    if ranks.world_size == 1 or learner.parallel.is_sharded:
        return compute_gradient
    first_steps_left = FIRST_STEPS

    def checked(learner: Learner, window: Window) -> Tensor:
        nonlocal first_steps_left
        losses = compute_gradient(learner, window)
        if window.k % EVERY_STEPS == 0 or first_steps_left:
            first_steps_left = max(0, first_steps_left - 1)
            # Weights, too: a gradient that was changed on one rank between two looks leaves equal
            # gradients behind, and weights that differ.
            tensors = _weights(learner) | _gradients(learner)
            _check_agreement(tensors, f"step {window.k}", "no update was made", ranks)
        return losses

    return checked


def check_before_evaluation(evaluate: Evaluate, learner: Learner, ranks: Ranks) -> Evaluate:
    """The same function, not reached where the last reduction failed: it may save weights."""
    if ranks.world_size == 1:
        return evaluate

    def checked(module: nn.Module) -> dict[str, float]:
        ranks.together(lambda: _check_complete(learner, ranks))
        return evaluate(module)

    return checked


def check_before_save(
    save: Callable[..., None], learner: Learner, ranks: Ranks
) -> Callable[..., None]:
    """The same function, before which the weights of all ranks are compared: rank 0's are saved."""
    if ranks.world_size == 1:
        return save

    def checked(step: int, **options: object) -> None:
        ranks.together(lambda: _check_complete(learner, ranks))
        # Before the save, which writes rank 0's: where ranks differ nobody knows whose are right.
        if not learner.parallel.is_sharded:
            _check_agreement(_weights(learner), f"after step {step}", "nothing was saved", ranks)
        save(step, **options)

    return checked


def _check_complete(learner: Learner, ranks: Ranks) -> None:
    """Raises what kept a step from being applied, or its gradient from being reduced, here."""
    learner.parallel.check()
    ranks.alone.check_whole()


def _weights(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in learner.module.named_parameters() if p.requires_grad}


def _gradients(learner: Learner) -> dict[str, Tensor]:
    gradients = {}
    for name, p in learner.module.named_parameters():
        if p.grad is not None:
            gradients[f"{name}.grad"] = p.grad
    return gradients


def _check_agreement(tensors: dict[str, Tensor], when: str, consequence: str, ranks: Ranks) -> None:
    """Compares them bit by bit, NaN and -0.0 too: an all-reduce gives every rank the same bits."""
    piece = PIECE if next(iter(tensors.values())).device.type == "cpu" else PIECE_OF_GPU
    # A few integers for all tensors together: nothing is sent by name while all agree.
    sums_of_ranks = ranks.gather(_checksums(list(_joined(tensors.values(), piece))))
    differing_ranks = []
    for rank, sums in enumerate(sums_of_ranks):
        if sums != sums_of_ranks[0]:
            differing_ranks.append(str(rank))
    if not differing_ranks:
        return
    names = _differing_names(tensors, piece, ranks)
    raise RanksDisagree(
        f"{when}: rank(s) {', '.join(differing_ranks)} differ from rank 0 in {some(names, 5)}; "
        f"{consequence}. "
        "Is something changed on one rank only (a parameter, a hook, a branch that depends on "
        "the rank), or are the machines of different kinds?"
    )


def _differing_names(tensors: dict[str, Tensor], piece: int, ranks: Ranks) -> list[str]:
    """Looked for on all ranks, once it is known that something differs: it costs more messages."""
    sums_by_name = {}
    for name, tensor in tensors.items():
        sums_by_name[name] = _checksums(list(_joined([tensor], piece)))
    of_ranks = ranks.gather(sums_by_name)
    differing = []
    for name in sums_by_name:
        if any(other[name] != of_ranks[0][name] for other in of_ranks):
            differing.append(name)
    return differing


def _joined(tensors: Iterable[Tensor], piece: int) -> Iterator[Tensor]:
    """The words of all tensors in pieces: few kernels on a GPU, whatever the tensors' sizes."""
    waiting: list[Tensor] = []
    count = 0
    for tensor in tensors:
        for words in _words(tensor).split(piece):
            if waiting and count + len(words) > piece:
                yield torch.cat(waiting)
                waiting.clear()
                count = 0
            waiting.append(words)
            count += len(words)
    yield torch.cat(waiting)


def _words(tensor: Tensor) -> Tensor:
    """Its bits, as integers of 16 or 32 bits: flat."""
    # A type of 8 bytes is two words of 32 bits.
    return tensor.reshape(-1).view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _checksums(pieces: Sequence[Tensor]) -> list[int]:
    """Of each: the sum of word times a factor of its position, modulo 2**64.

    Factors are odd, so one word that differs is always seen. They have no pattern, so that neither
    a swap nor a sign that is wrong everywhere cancels out. Integers add up to the same in any
    order. The host waits for the device.
    """
    longest = max(len(piece) for piece in pieces)
    # splitmix64's increment and the first round of its mixing, made odd.
    factors = torch.arange(1, longest + 1, device=pieces[0].device) * -0x61C8864680B583EB
    factors = (factors ^ (factors >> 30)) * -0x40A7B892E31B1A47 | 1
    # Overflow wraps around, on every device alike: that is the modulo.
    sums = [piece.long().mul_(factors[: len(piece)]).sum() for piece in pieces]
    return torch.stack(sums).tolist()
