"""Judges the facts of all ranks beside each other."""

from collections.abc import Callable, Sequence
from functools import partial

from train.doctor.facts import Facts
from train.doctor.findings import Finding, doubtful, fine, wrong

SKEW_SECONDS = 2.0


def compare(of_ranks: Sequence[Facts]) -> list[Finding]:
    found: list[Finding] = []
    for name in sorted({name for facts in of_ranks for name in facts.packages}):
        found += _same(of_ranks, name, partial(_version, name))
    found += _same(of_ranks, "Python", lambda facts: facts.python)
    found += _same(of_ranks, "CUDA of torch", lambda facts: facts.seen.cuda or "none")
    found += _same(of_ranks, "the commit of the code", lambda facts: facts.commit[:12] or "unknown")
    found += _same(of_ranks, "runtime.timeout_seconds", lambda facts: f"{facts.timeout_seconds:g}")
    kinds = _by_value(
        of_ranks, lambda facts: ", ".join(sorted({gpu.name for gpu in facts.gpus})) or "no GPU"
    )
    if len(kinds) > 1:
        found += doubtful(
            f"ranks work on other devices: {_told(kinds)}", "The slowest sets the pace"
        )
    return found


def compare_clocks(of_ranks: Sequence[Facts], ahead_seconds: Sequence[float]) -> list[Finding]:
    """`ahead_seconds`: of each rank, against rank 0."""
    if len(of_ranks) == 1:
        return []
    first = of_ranks[0].host
    found: list[Finding] = []
    for host, seconds in dict(
        zip([facts.host for facts in of_ranks], ahead_seconds, strict=True)
    ).items():
        if abs(seconds) > SKEW_SECONDS:
            where = "ahead of" if seconds > 0 else "behind"
            found += doubtful(
                f"the clock of {host} is {abs(seconds):.1f} s {where} that of {first}: logs and "
                "dates of files mislead",
                "Run there: chronyc makestep",
            )
    return found or fine(f"clocks agree within {max(map(abs, ahead_seconds)):.3f} s")


def _same(of_ranks: Sequence[Facts], what: str, value: Callable[[Facts], str]) -> list[Finding]:
    hosts = _by_value(of_ranks, value)
    if len(hosts) == 1:
        return []
    return wrong(f"machines differ in {what}: {_told(hosts)}", "Make them equal on all machines")


def _version(name: str, facts: Facts) -> str:
    return facts.packages.get(name, "missing")


def _by_value(of_ranks: Sequence[Facts], value: Callable[[Facts], str]) -> dict[str, list[str]]:
    """value -> the hosts that have it."""
    hosts: dict[str, list[str]] = {}
    for facts in of_ranks:
        known = hosts.setdefault(value(facts), [])
        if facts.host not in known:
            known.append(facts.host)
    return hosts


def _told(hosts: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} on {', '.join(names)}" for value, names in hosts.items())
