"""Compares the facts of all ranks."""

from collections.abc import Callable, Sequence
from functools import partial

from train.doctor.facts import Facts
from train.doctor.findings import Finding, doubtful, fine, wrong

SKEW_SECONDS = 2.0


def compare(of_ranks: Sequence[Facts]) -> list[Finding]:
    values: dict[str, Callable[[Facts], str]] = {}
    # Of all ranks: a package that one machine lacks is a difference too.
    packages = set().union(*(facts.packages for facts in of_ranks))
    for name in sorted(packages):
        values[name] = partial(_version, name)
    values["Python"] = lambda facts: facts.python
    values["CUDA of torch"] = lambda facts: facts.seen.cuda or "none"
    values["the commit of the code"] = lambda facts: facts.commit[:12] or "unknown"
    values["runtime.timeout_seconds"] = lambda facts: f"{facts.timeout_seconds:g}"
    findings: list[Finding] = []
    for what, value in values.items():
        findings += _check_same(of_ranks, what, value)
    # Not wrong, other than versions: ranks of unequal speed train, and batch.shares can make up for
    # it.
    devices = _by_value(of_ranks, _device)
    if len(devices) > 1:
        findings += doubtful(
            f"ranks work on different devices: {_listed(devices)}", "The slowest sets the pace"
        )
    return findings


def _device(facts: Facts) -> str:
    return ", ".join(sorted({gpu.name for gpu in facts.gpus})) or "no GPU"


def compare_clocks(of_ranks: Sequence[Facts], ahead_seconds: Sequence[float]) -> list[Finding]:
    """`ahead_seconds`: of each rank, against rank 0."""
    if len(of_ranks) == 1:
        return []
    first = of_ranks[0].host
    # A machine has one clock, however many ranks it has.
    by_host: dict[str, float] = {}
    for facts, seconds in zip(of_ranks, ahead_seconds, strict=True):
        by_host[facts.host] = seconds
    findings: list[Finding] = []
    for host, seconds in by_host.items():
        if abs(seconds) > SKEW_SECONDS:
            where = "ahead of" if seconds > 0 else "behind"
            findings += doubtful(
                f"the clock of {host} is {abs(seconds):.1f} s {where} that of {first}: logs and "
                "dates of files mislead",
                "Run there: chronyc makestep",
            )
    return findings or fine(f"clocks agree within {max(map(abs, ahead_seconds)):.3f} s")


def _check_same(
    of_ranks: Sequence[Facts], what: str, value: Callable[[Facts], str]
) -> list[Finding]:
    hosts = _by_value(of_ranks, value)
    if len(hosts) == 1:
        return []
    return wrong(f"machines differ in {what}: {_listed(hosts)}", "Make them equal on all machines")


def _version(name: str, facts: Facts) -> str:
    return facts.packages.get(name, "missing")


def _by_value(of_ranks: Sequence[Facts], value: Callable[[Facts], str]) -> dict[str, list[str]]:
    """value -> the hosts that have it."""
    hosts: dict[str, list[str]] = {}
    for facts in of_ranks:
        names = hosts.setdefault(value(facts), [])
        # Several ranks of a machine give the same value: it is named once.
        if facts.host not in names:
            names.append(facts.host)
    return hosts


def _listed(hosts: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} on {', '.join(names)}" for value, names in hosts.items())
