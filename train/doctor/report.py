"""What the doctor prints: what is wrong first."""

from collections import Counter
from collections.abc import Sequence

from train.doctor.facts import Facts
from train.doctor.findings import DOUBTFUL, FINE, WRONG, Finding
from train.errors import counted


def lines(
    of_ranks: Sequence[Facts], by_rank: Sequence[Sequence[Finding]], common: Sequence[Finding]
) -> list[str]:
    """`by_rank`: the findings of each rank; `common`: of all together.

    A finding of several machines is printed once.
    """
    hosts = _hosts_of(of_ranks, by_rank)
    machines = {facts.host for facts in of_ranks}
    # Each sentence once, and in the order of the checks.
    of_all = list(dict.fromkeys(common))
    printed = []
    for level in (WRONG, DOUBTFUL, FINE):
        for finding, names in hosts.items():
            if finding.level == level:
                # What all machines have in common needs no name in front.
                where = "" if len(names) == len(machines) else f"{', '.join(names)}: "
                printed.append(f"{level:<9} {where}{finding.text}")
        for finding in of_all:
            if finding.level == level:
                printed.append(f"{level:<9} {finding.text}")
    return [*printed, _summary([*hosts, *of_all], of_ranks)]


def _hosts_of(
    of_ranks: Sequence[Facts], by_rank: Sequence[Sequence[Finding]]
) -> dict[Finding, list[str]]:
    """Each finding, and the hosts that have it."""
    hosts: dict[Finding, list[str]] = {}
    for facts, findings in zip(of_ranks, by_rank, strict=True):
        for finding in findings:
            # A finding is frozen, so equal ones of several ranks are one key.
            names = hosts.setdefault(finding, [])
            if facts.host not in names:
                names.append(facts.host)
    return hosts


def is_wrong(findings: Sequence[Finding]) -> bool:
    return any(finding.level == WRONG for finding in findings)


def _summary(findings: Sequence[Finding], of_ranks: Sequence[Facts]) -> str:
    numbers = Counter(finding.level for finding in findings)
    levels = ", ".join(f"{numbers[level]} {level}" for level in (WRONG, DOUBTFUL, FINE))
    machines = counted(len({facts.host for facts in of_ranks}), "machine")
    return f"doctor: {levels}; {counted(len(of_ranks), 'rank')} on {machines}"
