"""Is the gradient exact on your config, model, data and loss? One step, split in many ways.

python -m train.verify CONFIG [key=value ...]        (or under accelerate launch, on several ranks)

The reference is one backward pass over the full batch on each process alone, in the same precision;
float64 first, unless the model does not run in it. Exit code 0: exact; 1: not exact; 2: bad config.
Nothing is written.
"""

import dataclasses
import sys
from collections.abc import Sequence

from accelerate.state import AcceleratorState

from train.accumulate import compute_gradient
from train.config import Config, load
from train.data import normalized, open_datasets
from train.distributed.accelerator import check_launcher, connect
from train.distributed.ranks import asked_world_size, launched_rank
from train.errors import FAILED, FINISHED, entry_point, exit_code
from train.exactness.additivity import check_additivity
from train.exactness.error_bounds import ROUNDS, arithmetic
from train.exactness.first_forward import FirstForwardError, check_first_forward
from train.exactness.split_check import COLUMNS, SplitCheck, SplitResult
from train.plan.steps import plan_batch
from train.setup import make_learner, share_work
from train.tasks import make_task


@entry_point
def main(argv: Sequence[str]) -> int:
    lines, remedies = verify(load(argv).config)
    exact = not remedies and all(line.is_exact for line in lines)
    if launched_rank() == 0:
        print(
            COLUMNS.format(
                "precision", "ranks x micro-batches", "error", "worst parameter", "verdict"
            )
        )
        print(*lines, sep="\n")
        print(_verdict(lines) if exact else _reasons(remedies))
    return exit_code("verified", FINISHED if exact else FAILED, 0)


def _verdict(lines: Sequence[SplitResult]) -> str:
    rounded = [line.precision for line in lines if line.precision in ROUNDS]
    if not rounded:
        return "exact"
    tested = {line.precision for line in lines}
    in_fp64 = "exact in fp64" if "fp64" in tested else "fp64 left out"
    return f"{in_fp64}, within the rounding of {rounded[0]}"


def _reasons(remedies: Sequence[str]) -> str:
    return "\n".join(["not exact, because", *(f"  {remedy}" for remedy in remedies)])


def verify(config: Config) -> tuple[list[SplitResult], list[str]]:
    """A line for each precision and split, and the causes where one is not exact."""
    check_launcher(config)
    task = make_task(config)
    sets = normalized(open_datasets(config, task.columns), config)
    # The batch as `accumulate` would take it: standard has nothing to split.
    plan = plan_batch(config, "accumulate", asked_world_size(), sets.train.size)
    lines: list[SplitResult] = []
    remedies: list[str] = []
    for variant in _precisions(config):
        AcceleratorState._reset_state()  # accelerate has one precision per process
        accelerator, ranks = connect(variant)
        learner = make_learner(variant, task, accelerator, plan.effective, ranks, sets.fitted)
        step = SplitCheck(
            learner=learner,
            data=sets.train,
            plan=plan,
            seed=config.seed,
            ranks=ranks,
            precision=arithmetic(learner, variant.precision),
            compute_gradient=compute_gradient,
        )
        first = sets.trial(config.seed, min(8, step.size))
        try:
            check_first_forward(learner, sets, first, config.data.columns)
        except FirstForwardError as error:
            # In the config's own precision it is a fault of the config; in fp64 alone it is none.
            if variant is config:
                raise
            if ranks.is_main:
                print(f"verify: fp64 is left out, the model does not run in it: {error.__cause__}")
            # A sum may still be under way for which another rank needs this one's part.
            ranks.settle()
            continue
        verdict = check_additivity(learner, first, variant.precision, sets.padding)
        # After the checks, which report what is wrong with model or data.
        share_work(learner, sets, variant, ranks)
        measured = list(step.results(verdict.terms))
        # Reasons that rounding does not explain count whatever the lines say.
        remedies += verdict.beyond_rounding
        # Others only where a line shows it: the trial alone may see what the step does not.
        if verdict.exact == "false" and not all(line.is_exact for line in measured):
            remedies += verdict.reasons
        lines += measured
        ranks.settle()
    accelerator.end_training()
    hidden = "is something random"
    if sets.padding:
        hidden = "does the model look at padding, which batch.micro_tokens cuts off"
    if not remedies and not all(line.is_exact for line in lines):
        remedies.append(f"the sum over micro-batches differs: {hidden}?")
    # Both precisions find the same causes: each is listed once.
    return lines, list(dict.fromkeys(remedies))


def _precisions(config: Config) -> Sequence[Config]:
    """float64 first, then that of the config."""
    if config.precision == "fp64":
        return (config,)
    # model.dtype=bf16 would narrow the weights of the run in float64.
    model = dataclasses.replace(config.model, dtype=None)
    return (dataclasses.replace(config, precision="fp64", model=model), config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
