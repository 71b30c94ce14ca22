"""Bugs that trainers really have, put into a copy of the code one at a time: which test notices
each of them?

python -m tests.campaigns.mutants [NAME ...]        prints a table for docs/results/exactness.md; exit code 1
if one survives
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = [
    "tests/test_blog_loop.py",
    "tests/test_step.py",
    "tests/test_synchronisation.py",
    "tests/test_update.py",
    "tests/batch",
    "tests/test_loops.py",
    "tests/distributed/test_parallel.py",
    "tests/test_scaler.py",
]


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str

    def source(self) -> str:
        """Today's file, mutated."""
        source = (ROOT / self.file).read_text()
        assert source.count(self.old) == 1, (
            f"{self.name}: {self.old!r} is not in {self.file} exactly once"
        )
        return source.replace(self.old, self.new)


MUTANTS = [
    Mutant(
        "none: the code as it is", "train/step.py", "def forward_backward(", "def forward_backward("
    ),
    Mutant(
        "divide by the constant K",
        "train/step.py",
        "learner.coefficients[term] * ranks / weight if weight else 0.0",
        "bool(ranks) / (len(window.micro_batches) * max(1, micro_batch.samples))",
    ),
    Mutant(
        "forget the factor R",
        "train/step.py",
        "ranks = learner.world_size if micro_batch.samples else micro_batch.filler_factor",
        "ranks = 1 if micro_batch.samples else 0",
    ),
    Mutant(
        "zero the gradients late",
        "train/step.py",
        "    learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)\n    "
        "learner.skips.add(skipped)",
        "    learner.skips.add(skipped)",
    ),
    Mutant(
        "clip per micro-step",
        "train/step.py",
        "    detached = stacked(",
        "    if learner.max_grad_norm:\n"
        "        torch.nn.utils.clip_grad_norm_(learner.parameters, learner.max_grad_norm)\n"
        "    detached = stacked(",
    ),
    Mutant(
        "no_sync on the last micro-step too",
        "train/accumulate.py",
        "    return sum(parts, start=forward_backward(learner, next(micro_batches), window))",
        "        return sum(parts, start=forward_backward(learner, next(micro_batches), window))",
    ),
    Mutant(
        "forward outside no_sync",
        "train/step.py",
        "    sums = by_term(learner.task.loss_sum(learner.model, "
        "learner.feed.take(micro_batch)))\n",
        "    inside = getattr(learner.model, 'require_backward_grad_sync', None)\n"
        "    learner.model.require_backward_grad_sync = True\n"
        "    sums = by_term(learner.task.loss_sum(learner.model, learner.feed.take(micro_batch)))\n"
        "    learner.model.require_backward_grad_sync = inside\n",
    ),
    Mutant(
        "weight counted on one rank only",
        "train/data/windows.py",
        "by_term: Mapping[str, float] = dict(zip(self.terms, weights, strict=True))",
        "by_term = "
        "{t: float(sum(self.loss_weight(m.batch)[t] for m in ahead.micro_batches)) * self.ranks.world_size for t in self.terms}",
    ),
    Mutant(
        "rate moved R times per step",
        "train/loop.py",
        "run.plan.rate.at(window.k, window.seen)",
        "run.plan.rate.at(min(window.k * run.ranks.world_size, run.plan.total_steps), window.seen)",
    ),
    Mutant(
        "last micro-batch's loss logged",
        "train/accumulate.py",
        "sum(parts, start=forward_backward(learner, next(micro_batches), window))",
        "forward_backward(learner, next(micro_batches), window) * len(window.micro_batches)",
    ),
    Mutant(
        "tail dropped",
        "train/batch/plan.py",
        "if self.dataset_size is None or not self.drop_tail:",
        "if self.dataset_size is None:",
    ),
    Mutant(
        "sample repeated to even out ranks",
        "train/batch/assign.py",
        "    sizes = split_evenly(share(samples, rank, plan.world_size), micro_steps)\n"
        "    return first_of(samples, rank, plan.world_size), tuple(sizes)",
        "    sizes = split_evenly(longest, micro_steps)\n"
        "    return min(first_of(samples, rank, plan.world_size), samples - longest), tuple(sizes)",
    ),
    Mutant(
        "gradients of bf16 summed in bf16",
        "train/distributed/flat_buckets.py",
        "wide = torch.promote_types(group[0].dtype, torch.float32)",
        "wide = group[0].dtype",
    ),
    Mutant(
        "explicit reduction: the sum, not the mean",
        "train/distributed/flat_buckets.py",
        "bucket.div_(self.ranks.world_size)",
        "bucket.div_(1)",
    ),
    Mutant(
        "explicit reduction: DDP reduces too",
        "train/distributed/flat_buckets.py",
        "learner.accelerator.no_sync(learner.model)",
        "learner.accelerator.no_sync(None)",
    ),
    Mutant(
        "explicit reduction: a rank updates what it used itself",
        "train/distributed/flat_buckets.py",
        "            if parameter in used:\n",
        "            if parameter in self._arrived:\n",
    ),
    Mutant(
        "explicit reduction: zeros for what nobody used",
        "train/distributed/flat_buckets.py",
        "            if parameter in used:\n",
        "            if used:\n",
    ),
    Mutant(
        "float16: the scaled gradient is measured and clipped",
        "train/step.py",
        "    learner.scaler.unscale_(learner.optimizer)\n    norm = "
        "learner.parallel.total_norm(gradients)\n",
        "    norm = learner.parallel.total_norm(gradients)\n    "
        "learner.scaler.unscale_(learner.optimizer)\n",
    ),
    Mutant(
        "float16: the scale stays where the gradient overflows",
        "train/step.py",
        "    learner.scaler.update()",
        "    learner.scaler.update(learner.scaler.get_scale() if learner.scaler.is_enabled() else "
        "None)",
    ),
]


def killer(mutant: Mutant) -> str | None:
    """The first test that fails on the mutant; None if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(
            ROOT,
            copy,
            ignore=shutil.ignore_patterns(
                ".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis"
            ),
        )
        (copy / mutant.file).write_text(mutant.source())
        # From the copy, so that its package is found before an installed one; its own output only.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            *TESTS,
        ]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
        assert found or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return found[1] if found else None


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    print("| mutant | killed by | seconds |\n|---|---|---|", flush=True)
    survivors = 0
    for mutant in chosen:
        start = time.monotonic()
        test = killer(mutant)
        # a suite that fails by itself would seem to kill everything
        expected = mutant.old == mutant.new
        survivors += (test is None) is not expected
        told = f"`{test}`" if test else "survives, as it must" if expected else "**survived**"
        print(f"| {mutant.name} | {told} | {time.monotonic() - start:.0f} |", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} as expected")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
