"""The only loop. It counts optimizer steps; its two users differ in how they compute a gradient."""

from train.run import Run
from train.step import ComputeGradient, update


def fit(run: Run, compute_gradient: ComputeGradient) -> None:
    """Train on all windows, or until the ranks have agreed to stop."""
    # A gradient that is left from before must not reach step 1.
    run.learner.optimizer.zero_grad(set_to_none=run.learner.parallel.frees_gradients)
    run.begin()
    for window in run.windows:
        losses = norm = None
        # Where no label counts on any rank there is no gradient, and nothing moves.
        if not window.is_empty:
            losses = compute_gradient(run.learner, window)
            norm = update(run.learner, run.plan.rate.at(window.k, window.seen))
        run.after_step(window, losses, norm)
