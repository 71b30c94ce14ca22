"""What would stop a run on these machines: python -m train.doctor [CONFIG] [key=value ...]

On all ranks and machines: ./launch.sh doctor, with NPROC and with flags after `--` as for a run.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence

from train.config import Config, load
from train.distributed.accelerator import check_launcher, connect
from train.distributed.ranks import LaunchError, lost_rank
from train.doctor.across import compare, compare_clocks
from train.doctor.checks import check
from train.doctor.facts import Facts, gather
from train.doctor.findings import WRONG, Finding, wrong
from train.doctor.measure import all_reduce, clocks_ahead
from train.doctor.report import is_wrong, lines
from train.errors import FAILED, FINISHED, entry_point, exit_code, leave, print_error
from train.launching.arguments import parse

MEETING_SECONDS = 60


@entry_point
def main(argv: Sequence[str]) -> int:
    """The exit code: 0 where nothing would stop a run, else 1."""
    words = parse(argv)  # without a CONFIG: the quick start's
    # --print-config: whether targets exist is not asked, and torch not imported for it.
    config = load([words.config, *words.words, "--print-config"]).config
    facts = gather(config.output_dir, config.runtime.timeout_seconds)
    printed, code = examine(facts, config)
    if facts.rank == 0:
        print("\n".join(printed))
    return exit_code(printed[-1], code, 0)


def examine(facts: Facts, config: Config) -> tuple[list[str], int]:
    """What is printed, and the exit code: the same on all ranks, where they can connect."""
    # Before the ranks connect: these findings are printed also where they cannot.
    findings = check(facts) + _check_launcher(config)
    # Nobody waits half an hour for a doctor.
    brief = dataclasses.replace(config.runtime, timeout_seconds=MEETING_SECONDS)
    try:
        accelerator, ranks = connect(dataclasses.replace(config, runtime=brief))
        of_ranks = ranks.gather(facts)
        by_rank = ranks.gather(findings)
        common = compare(of_ranks) + compare_clocks(of_ranks, clocks_ahead(ranks))
        common += all_reduce(ranks, accelerator.device)
        accelerator.end_training()
    # RuntimeError: what torch raises for a rank or a store that cannot be reached.
    except (LaunchError, RuntimeError) as error:
        why = "another rank is lost" if lost_rank(error) else str(error).partition("\n")[0]
        missing = wrong(
            f"rank {facts.rank} did not meet the others: {why}",
            "Look at what the other machines print",
        )
        # On each machine: without a connection, no rank knows the facts of others.
        print_error("\n".join(lines([facts], [findings], missing)))
        return ["doctor: the ranks did not meet"], FAILED
    # From what all ranks have gathered, so that the exit code is the same on each of them.
    printed = lines(of_ranks, by_rank, common)
    code = FAILED if is_wrong([*itertools.chain(*by_rank), *common]) else FINISHED
    return printed, code


def _check_launcher(config: Config) -> list[Finding]:
    """accelerate's settings against the config."""
    try:
        check_launcher(config)
    except LaunchError as error:
        return [
            Finding(WRONG, line.removeprefix("the launcher was told "))
            for line in str(error).splitlines()
        ]
    return []


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
