"""At which steps a run is audited."""

FIRST_STEPS = (1, 10, 100)
"""The steps of the first audits: what is wrong from the start, or opens early, is found soon."""


def next_audit(step: int, every_steps: int) -> int:
    """The first step from `step` on that is audited."""
    # Rounded up: the first multiple of every_steps from here on.
    next_regular = -(-step // every_steps) * every_steps
    candidates = [first for first in FIRST_STEPS if first >= step]
    return min([*candidates, next_regular])


def describe_schedule(every_steps: int, total_steps: int) -> str:
    """For the screen: at which steps, and at how many of all."""
    # A first step that is also a multiple is counted below: it is audited once.
    first_steps = [k for k in FIRST_STEPS if k <= total_steps and k % every_steps]
    when = []
    if first_steps:
        when.append(f"at steps {', '.join(map(str, first_steps))}")
    if every_steps <= total_steps:
        when.append(f"every {every_steps:,} steps")
    audits = len(first_steps) + total_steps // every_steps
    return (
        f"audit     {' and '.join(when)}: a second gradient, cut another way, in {audits:,} of "
        f"{total_steps:,} steps"
    )
