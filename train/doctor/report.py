"""What the doctor prints: what is wrong first."""

from collections.abc import Sequence

from train.doctor.facts import Facts
from train.doctor.findings import DOUBTFUL, FINE, WRONG, Finding
from train.errors import counted


def lines(
    of_ranks: Sequence[Facts], own: Sequence[Sequence[Finding]], common: Sequence[Finding]
) -> list[str]:
    """`own`: of each rank; `common`: of all together. What several machines have in common is
    printed once.
    """
    hosts: dict[Finding, list[str]] = {}
    for facts, findings in zip(of_ranks, own, strict=True):
        for finding in findings:
            named = hosts.setdefault(finding, [])
            if facts.host not in named:
                named.append(facts.host)
    everywhere = {facts.host for facts in of_ranks}
    told = []
    for level in (WRONG, DOUBTFUL, FINE):
        for finding, named in hosts.items():
            where = "" if len(named) == len(everywhere) else f"{', '.join(named)}: "
            if finding.level == level:
                told.append(f"{level:<9} {where}{finding.text}")
        told += [
            f"{level:<9} {finding.text}"
            for finding in dict.fromkeys(common)
            if finding.level == level
        ]
    return [*told, _summary([*hosts, *dict.fromkeys(common)], of_ranks)]


def is_wrong(findings: Sequence[Finding]) -> bool:
    return any(finding.level == WRONG for finding in findings)


def _summary(findings: Sequence[Finding], of_ranks: Sequence[Facts]) -> str:
    counts = [
        f"{sum(each.level == level for each in findings)} {level}"
        for level in (WRONG, DOUBTFUL, FINE)
    ]
    machines = counted(len({facts.host for facts in of_ranks}), "machine")
    return f"doctor: {', '.join(counts)}; {counted(len(of_ranks), 'rank')} on {machines}"
