"""Why a step cannot be audited: it draws random numbers, or its state cannot be put back."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from train.errors import some
from train.exactness.captured_state import State, generators_of
from train.exactness.trial import INVARIANT, invariant_modules
from train.randomness import Generators, States
from train.step import Learner


def find_obstacle(
    learner: Learner, before: State, after: State, generators: Generators, seed: int
) -> str:
    """Why recomputing the step would prove nothing, or would leave a trace; else empty.

    `before` and `after`: the states around the step's gradient, which began with all generators set
    to `seed`.
    """
    if before.is_partial or after.is_partial:
        return "declared: model and task hold more than can be copied and put back"
    try:
        after.restore()  # changes nothing, and shows that it can be done
    except Exception as error:  # of the user's objects
        return (
            f"declared: what model and task hold cannot be put back ({type(error).__name__}: "
            f"{error})"
        )
    # To the bit: only what has not moved at all needs no restoring.
    changed = after.changed_since(before, 0.0)
    # Draws from a generator of the model's own show in the state; those from global generators
    # only in the generators themselves. Where some are declared invariant, the global ones are
    # looked at module by module, in recorded_other_draws.
    drawn = generators_of(changed)
    if not declares_invariant_draws(learner):
        drawn = [*_generators_drawn_from(generators, seed), *drawn]
    if drawn:
        return (
            f"it draws random numbers ({', '.join(drawn)}), and would draw others for other "
            "micro-batches"
        )
    # Parameters and large tensors, whose copies might not fit in memory.
    not_restorable = [name for name in changed if name in before.uncopied]
    if not_restorable:
        return (
            f"declared: {some(not_restorable)} changes while it is computed, and cannot be put back"
        )
    return ""


def _generators_drawn_from(generators: Generators, seed: int) -> list[str]:
    """Those from which something was drawn since all were set to `seed`, by name."""
    now = generators.states()
    # Seeded once more and compared: a generator that nothing was drawn from stands exactly there.
    with generators.kept():
        generators.seed(seed)
        start = generators.states()
    return now.moved_since(start)


def declares_invariant_draws(learner: Learner) -> bool:
    """Whether model or task declare that their draws are the same however a batch is cut."""
    return bool(invariant_modules(learner.module)) or bool(getattr(learner.task, INVARIANT, False))


@contextmanager
def recorded_other_draws(learner: Learner, generators: Generators) -> Iterator[list[str]]:
    """The generators drawn from inside, other than by what declares its draws invariant.

    Complete when the context has ended.
    """
    drawn: list[str] = []
    if getattr(learner.task, INVARIANT, False):
        yield drawn
        return
    last_seen: States = generators.states()
    depth = 0  # modules may be inside one another: only the outermost one counts

    def enter(*_: object) -> None:
        nonlocal depth
        if depth == 0:
            drawn.extend(generators.states().moved_since(last_seen))
        depth += 1

    def leave(*_: object) -> None:
        nonlocal depth, last_seen
        depth -= 1
        if depth == 0:
            last_seen = generators.states()

    with ExitStack() as hooks:
        for part in invariant_modules(learner.module).values():
            hooks.callback(part.register_forward_pre_hook(enter).remove)
            hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield drawn
    drawn.extend(generators.states().moved_since(last_seen))
