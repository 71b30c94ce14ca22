"""Did a gradient draw random numbers? Another cut then draws others, and a comparison would say
nothing.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from train.exactness.trial import INVARIANT, says_invariant
from train.randomness import Generators, States
from train.step import Learner


def has_drawn(generators: Generators, seed: int) -> list[str]:
    """The generators from which something was drawn since all were set to `seed`, by name."""
    now = generators.states()
    with generators.kept():
        generators.seed(seed)
        start = generators.states()
    return now.moved_since(start)


def may_draw(learner: Learner) -> bool:
    """Whether something says that its draws are the same however a batch is cut."""
    return bool(says_invariant(learner.module)) or bool(getattr(learner.task, INVARIANT, False))


@contextmanager
def drawn_outside(learner: Learner, generators: Generators) -> Iterator[list[str]]:
    """The generators from which something was drawn inside, other than by who says that its draws
    are invariant.
    """
    found: list[str] = []
    if getattr(learner.task, INVARIANT, False):
        yield found
        return
    last: list[States] = [generators.states()]
    depth = 0

    def enter(*_: object) -> None:
        nonlocal depth
        if depth == 0:
            found.extend(generators.states().moved_since(last[0]))
        depth += 1

    def leave(*_: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            last[0] = generators.states()

    with ExitStack() as hooks:
        for part in says_invariant(learner.module).values():
            hooks.callback(part.register_forward_pre_hook(enter).remove)
            hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield found
    found.extend(generators.states().moved_since(last[0]))
