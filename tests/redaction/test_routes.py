"""By which routes a secret might reach disk, screen or W&B: each with a canary of its own, and none
arrives.

A route is how a secret is written, and by which way it leaves. Not knowable, and so not among them:
a value without a name, a known form or a variable of the environment (`my.value=abc123`, `mysql
-pabc123`), what is compressed or encrypted, and what C code or another program writes to the
descriptors itself.
"""

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from tests.redaction.sources import CODE, CONFIG, TEXT
from tests.redaction.ways import CANARY, WAYS
from train.accumulate import compute_gradient
from train.main import main
from train.redaction import clean, clean_patch, guard_streams, learn
from train.redaction.clean import clean_text

NAME = "diff --git a/{0} b/{0}\nindex 1..2 100644\n--- a/{0}\n+++ b/{0}\n@@ -1 +1 @@\n"


def patched(source: str, file: str, mark: str) -> str:
    """As a diff has it: added, removed, or unchanged beside a change."""
    lines = "".join(f"{mark}{line}\n" for line in source.replace("@@", CANARY).split("\n"))
    return clean_patch(NAME.format(file) + lines, lambda path: b"")


@pytest.mark.parametrize("mark", ["+", "-", " "])
def test_a_patch(mark: str) -> None:
    leaked = [source for source in CODE if CANARY in patched(source, "mine.py", mark)]
    leaked += [source for source in (*CONFIG, *TEXT) if CANARY in patched(source, "mine.txt", mark)]

    assert leaked == []


def test_texts() -> None:
    assert [
        source for source in (*CONFIG, *TEXT) if CANARY in clean_text(source.replace("@@", CANARY))
    ] == []


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in a path": "/tmp/run-{}/x".format,
    "in JSON": lambda value: json.dumps({"note": value}),
    "in JSON in JSON": lambda value: json.dumps(json.dumps({"note": value})),
    "as Python shows it": repr,
    "of an exception": lambda value: repr(ValueError(f"cannot use {value!r}")),
    "in base64": lambda value: base64.b64encode(value.encode()).decode(),
    "in base64 behind a user": lambda value: base64.b64encode(f"me:{value}".encode()).decode(),
    "in base64 behind two letters": lambda value: base64.b64encode(
        f"x:{value}:y".encode()
    ).decode(),
    "in hexadecimal": lambda value: value.encode().hex(),
    "shortened": lambda value: f"got '{value[:12]}...{value[-4:]}'",
    "over lines": lambda value: f"x {value[:9]}\n    {value[9:]} y",
    "in bytes": lambda value: repr(value.encode()),
}
HARD = "Zq7 kan\"ary'9X/+%&$ü"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [f"{CANARY}-0123456789", "correct horse battery staple 42"])
def test_forms_of_a_known_value(form: str, value: str) -> None:
    learn({"data.args": {"password": value}})

    shown = clean(FORMS[form](value))

    assert "[redacted]" in shown
    assert FORMS[form](value) != shown
    assert value[:9] not in shown


def test_a_value_of_hard_letters() -> None:
    learn({"password": HARD})

    for form in ("as it is", "in JSON", "in JSON in JSON", "as Python shows it"):
        assert "kan" not in clean(FORMS[form](HARD)), form


def test_ways_to_the_screen(tmp_path: Path) -> None:
    """In processes of their own, as they end: by a trace."""
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "MY_TOKEN": f"{CANARY}0", "PATH": "/usr/bin:/bin"}
    program = [sys.executable, "-m", "tests.redaction.ways"]

    done = subprocess.run(program, capture_output=True, env=environment, check=True, cwd=tmp_path)

    output = done.stdout.decode() + done.stderr.decode()
    assert re.findall(r"next (.+)", output) == list(WAYS)
    assert output.count("[redacted]") >= len(WAYS)
    assert output.count("Traceback") >= len(WAYS) - 1
    assert "kanary" not in output


def test_a_refused_config_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refusals quote what they got."""
    guard_streams()
    words = argv(tmp_path)
    for override in (
        f"optimizer.lr=${{oc.env:NO_SUCH_TOKEN}}{CANARY}",
        f"batch.pass={CANARY}",
        f"seed=token={CANARY}",
        f"--password={CANARY}",
        f"data.args.token=[{CANARY}",
        f"data.source=https://me:{CANARY}@example.org/x.csv",
        f"model.args.api_key={CANARY}",
    ):
        assert main([*words, override], "accumulate", compute_gradient) == 2, override
    output = capsys.readouterr()
    assert CANARY not in output.out + output.err.replace("${oc.env:NO_SUCH_TOKEN}" + CANARY, "")


class Cries:
    """Raises with what it was given, after it has printed it."""

    def __init__(self, token: str, note: str) -> None:
        raise RuntimeError(f"401 for {token}, {note}")


def secretive(**args: Any) -> Any:
    from tests.helpers import tiny

    return tiny()


def everything_under(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_keeps_and_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Config, override, variable, interpolated name, notes, tags, group, URL, printed texts: of a
    whole run.
    """
    monkeypatch.setenv("SOME_JWT", f"{CANARY}1")
    monkeypatch.setenv("SHORT_PWD", "k7Qz")
    words = argv(
        tmp_path,
        "data.source=tests.redaction.test_routes.secretive",
        f"data.args={{token: {CANARY}2, stripe_key: {CANARY}3, url: "
        f"'https://x.org/f?sig={CANARY}4', pass: k8Qz}}",
        "name=run-${data.args.token}-${oc.env:SOME_JWT}",
        f"wandb={{mode: offline, notes: 'pwd is {CANARY}5', tags: ['jwt={CANARY}6'], group: "
        "'g-${oc.env:SOME_JWT}'}",
        "data.eval_fraction=0.2",
        "evaluate.at_start=true",
    )
    monkeypatch.setattr(sys, "argv", ["train", *words, "--api-key", f"{CANARY}7"])

    assert main(words, "accumulate", compute_gradient) == 0

    print("k7Qz k8Qz", f"{CANARY}2")
    output = capsys.readouterr()
    runs = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert [path.name for path in runs] == ["run-redacted-redacted"]
    files = everything_under(runs[0])
    files.pop("git.patch", None)  # this very file, where it has just been changed
    assert {"config.yaml", "plan.json", "environment.json", "log.txt", "ended.json"} <= set(files)
    assert any(name.endswith(".wandb") for name in files)
    for where, content in {**files, "screen": (output.out + output.err).encode()}.items():
        assert b"kanary" not in content, where
        assert b"k7Qz" not in content, where
        assert b"k8Qz" not in content, where


def test_what_raises_is_kept_and_shown_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = argv(
        tmp_path,
        "task=tests.redaction.test_routes.Cries",
        f"task.args={{token: {CANARY}, note: x}}",
    )

    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        pytest.raises(RuntimeError),
    ):
        main(words, "accumulate", compute_gradient)

    assert CANARY not in clean(f"RuntimeError: 401 for {CANARY}, x")
