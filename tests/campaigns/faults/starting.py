"""Rows about the start: two jobs, secrets, bad configs."""

import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

from tests.campaigns.faults import compare, jobs, ranks
from tests.campaigns.faults.row import Row, check_same, command, folder, reference, train


def two_jobs(here: Path, full: bool) -> str:
    preserve_state = reference(here, 1)
    first = jobs.start_ranks(
        here, 1, ranks.train_rank, command(here), "accumulate", (partial(ranks.pause_steps, 0.3),)
    )
    while len(compare.notes(here, "windows-0.jsonl")) < 7:
        assert first.processes[0].is_alive(), first.told()
        time.sleep(0.02)
    apart = folder(here, "second")
    codes, second = train(apart, 1, command(here))
    owner = f"process {first.pid(0)} on {socket.gethostname()}"
    assert codes == [2], second.told()
    assert f"is being trained into by {owner}" in second.told(), second.told()
    assert first.send(0, signal.SIGKILL)
    assert first.wait() == [-signal.SIGKILL]
    assert (here / "run" / ".lock").read_text().strip() == owner  # what a kill leaves behind
    codes, third = train(here, 1, command(here))
    assert codes == [0], third.told()
    check_same(here, preserve_state, 1)
    rounds, together = (10, 4) if full else (2, 3)
    for number in range(rounds):
        _at_once(folder(here, f"round-{number}"), together)
    return (
        f"refused, naming process and host; a stale lock taken over; {rounds} rounds of "
        f"{together} at once: 1 trained"
    )


def _at_once(own: Path, together: int) -> None:
    slow = (partial(ranks.pause_steps, 0.1),)
    started = []
    for number in range(together):
        apart = folder(own, str(number))
        started.append(
            jobs.start_ranks(apart, 1, ranks.train_rank, command(own), "accumulate", slow)
        )
    codes = sorted(job.wait()[0] for job in started)
    assert codes == [0] + [2] * (together - 1), "\n".join(job.told() for job in started)


def secrets(here: Path, full: bool) -> str:
    routes = (
        "yaml",
        "reference",
        "override",
        "argument",
        "notes",
        "exception",
        "remote",
        "url",
        "variable",
    )
    canary = {route: f"Canary{number}x7Qz{route}9Lw" for number, route in enumerate(routes)}
    repository = folder(here, "repository")
    remote = f"https://me:{canary['remote']}@example.org/code.git"
    for words in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", repository, *words], check=True)
    words = command(
        repository,
        "data.args.token=${oc.env:HF_TOKEN}",
        f"data.args.url=https://me:{canary['url']}@example.org/data",
        f"data.args.api_key={canary['override']}",
        f"wandb.notes=password={canary['notes']}",
        "wandb.mode=offline",
        "log.every_steps=1",
    )
    config = Path(words[0])
    config.write_text(
        config.read_text().replace(
            "tests.helpers.tiny}", f"{SECRETIVE}, args: {{password: {canary['yaml']}}}}}"
        )
    )
    variables = {
        "HF_TOKEN": canary["reference"],
        "MY_SECRET": canary["variable"],
        "LEAK_TOKEN": canary["exception"],
    }
    typed = [*words, f"--api-key={canary['argument']}"]
    for name, loud in {"whole": None, "failing": partial(ranks.say_secret, "LEAK_TOKEN")}.items():
        patches = [partial(ranks.as_command, typed, repository)]
        patches += [partial(ranks.at_step, 12, loud)] if loud else []
        job = jobs.start_ranks(
            here,
            1,
            ranks.train_rank,
            [*words, f"name={name}"],
            "accumulate",
            tuple(patches),
            **variables,
        )
        assert job.wait() == [1 if loud else 0], job.told()
        shown = [route for route, text in canary.items() if text in job.told()]
        assert not shown, f"{', '.join(shown)} on the screen"
        assert list((repository / name / "checkpoints").iterdir())
        assert list((repository / name / "wandb").rglob("*.wandb"))
    assert "401 for" in (repository / "failing" / "ended.json").read_text(), (
        "the exception left no trace"
    )
    files = [
        path
        for name in ("whole", "failing")
        for path in (repository / name).rglob("*")
        if path.is_file()
    ]
    hits = [
        f"{route} in {path.relative_to(repository)}"
        for path in files
        for route, text in canary.items()
        if text.encode() in path.read_bytes()
    ]
    assert not hits, "; ".join(hits)
    return (
        f"hits: 0 of {len(routes)} routes, in {len(files)} files of a run that finished and one "
        "that raised"
    )


SECRETIVE = "tests.campaigns.faults.ranks.secretive"

BAD = {
    "unknown key": "bach: {effective: 8}",
    "nested unknown key": "log: {every: 1}",
    "duplicate key": "seed: 1\nseed: 2",
    "wrong type": "seed: many",
    "no as a name": "name: no",
    "missing value": "optimizer: {target: ???}",
    "missing key": "data: {args: {}}",
    "out of range": "log: {every_steps: 0}",
    "no such choice": "precision: fp8",
    "no such target": "task: clasification",
    "wrong argument": "model: {target: mlp, args: {inputs: 6, hiden: [8], outputs: 3}}",
    "no YAML": "seed: [1",
}


def bad_config(here: Path, full: bool) -> str:
    slowest = 0.0
    for name, line in BAD.items():
        own = folder(here, name.replace(" ", "-"))
        words = command(own)
        config = Path(words[0])
        key = line.partition(":")[0]
        kept = [old for old in config.read_text().splitlines() if not old.startswith(f"{key}:")]
        config.write_text("\n".join([*kept, line]) + "\n")
        words = [
            word
            for word in words
            if not word.startswith(f"{key}.") and not word.startswith(f"{key}=")
        ]
        start = time.monotonic()
        codes, job = train(own, 2, words, ranks.no_device)
        slowest = max(slowest, time.monotonic() - start)
        assert codes == [2, 2], f"{name}: {codes}\n{job.told()}"
        assert not compare.notes(own, "fired.jsonl"), f"{name}: a rank went to meet the others"
        assert job.told(0).strip(), f"{name}: nothing was said"
        assert "Traceback" not in job.told(), f"{name}: {job.told()}"
        assert not (own / "run").exists(), f"{name}: a run folder was made"
    return (
        f"{len(BAD)} of {len(BAD)} refused on both ranks, within {slowest:.1f} s (torch imported "
        "already)"
    )


ROWS = (
    Row(
        "11",
        "two jobs on one run folder",
        "the same command twice; a SIGKILL leaves the lock; several at once",
        "the second refuses, naming host and pid; a stale lock is recognised",
        two_jobs,
    ),
    Row(
        "30",
        "secrets",
        "canaries in YAML, reference, override, argument, notes, exception, git remote, URL, "
        "environment",
        "no canary in W&B files, logs, checkpoints, metrics.jsonl",
        secrets,
    ),
    Row(
        "32",
        "bad config",
        ", ".join(BAD),
        "refused on every rank before any device work",
        bad_config,
    ),
)
