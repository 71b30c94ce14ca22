"""Rows about what leaves a process and what comes into it: secrets, and the configs of other
people's run folders.
"""

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
import yaml

import train
from tests.campaigns.faults.malicious import Payload
from tests.campaigns.faults.row import Row
from tests.campaigns.faults.row import train as start
from tests.helpers import argv
from tests.redaction.sources import CODE, CONFIG, TEXT
from tests.redaction.test_routes import FORMS
from tests.redaction.test_texts import HARMLESS, HARMLESS_CODE
from tests.redaction.ways import CANARY, WAYS
from train.config import NotTrusted
from train.evaluate import evaluate
from train.redaction import clean, clean_patch, forget, learn
from train.redaction.clean import clean_text

ROOT = Path(__file__).parents[3]


def routes(here: Path, full: bool) -> str:
    """Each way of writing a secret, by each way out."""
    leaked: list[str] = []
    tried = 0

    def see(what: str, shown: str) -> None:
        nonlocal tried
        tried += 1
        if "kanary" in shown:
            leaked.append(what)

    for sources, file in ((CODE, "mine.py"), ((*CONFIG, *TEXT), "mine.txt")):
        for source in sources:
            written = source.replace("@@", CANARY)
            for mark in "+- ":
                lines = "".join(f"{mark}{line}\n" for line in written.split("\n"))
                patch = (
                    f"diff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n@@ -1 +1 "
                    f"@@\n{lines}"
                )
                see(f"{mark}{source}", clean_patch(patch, lambda path: b""))
            if file == "mine.txt":
                see(source, clean_text(written))
    learn({"password": f"{CANARY}-0123456789"})
    for name, form in FORMS.items():
        see(name, clean(form(f"{CANARY}-0123456789")))
    forget()
    for way in WAYS:
        see(way, _screen(here, way))
    alarms = [text for text in HARMLESS if clean(text) != text]
    alarms += [text for text in HARMLESS_CODE if clean_text(text, code=True) != text]
    assert not leaked, "; ".join(leaked[:5])
    assert not alarms, "; ".join(alarms[:5])
    return (
        f"leaked: 0 of {tried} knowable routes; false alarms: 0 of "
        f"{len(HARMLESS) + len(HARMLESS_CODE)}"
    )


def _screen(here: Path, way: str) -> str:
    environment = {"PYTHONPATH": str(ROOT), "MY_TOKEN": f"{CANARY}0", "PATH": "/usr/bin:/bin"}
    program = [sys.executable, "-m", "tests.redaction.ways", way]
    done = subprocess.run(program, capture_output=True, env=environment, check=True, cwd=here)
    said = (done.stdout + done.stderr).decode()
    assert re.search(r"\[redacted\]", said), f"{way}: nothing was said"
    return said


def payloads(here: Path, mark: Path) -> list[tuple[str, dict[str, Any]]]:
    """Targets and arguments that make a file where they are called, or imported."""
    script, pickled, tensors = here / "evil.py", here / "evil.pkl", here / "evil.pt"
    script.write_text(f"open({str(mark)!r}, 'w').close()\n")
    pickled.write_bytes(pickle.dumps(Payload(mark)))
    torch.save(Payload(mark), tensors)
    touch = f"touch {mark}"
    words = ["touch", str(mark)]
    return [
        ("os.system", {"command": touch}),
        ("os.popen", {"cmd": touch}),
        ("os.mkdir", {"path": str(mark)}),
        ("subprocess.run", {"args": words}),
        ("subprocess.call", {"args": words}),
        ("subprocess.check_output", {"args": words}),
        ("subprocess.Popen", {"args": words}),
        ("subprocess.getoutput", {"cmd": touch}),
        ("shutil.copyfile", {"src": str(script), "dst": str(mark)}),
        ("runpy.run_path", {"path_name": str(script)}),
        ("importlib.import_module", {"name": "evil"}),
        ("evil.anything", {}),
        ("torch.load", {"f": str(tensors), "weights_only": False}),
        ("numpy.load", {"file": str(pickled), "allow_pickle": True}),
        ("pandas.read_pickle", {"filepath_or_buffer": str(pickled)}),
        ("train.errors.os.system", {"command": touch}),
        ("train.errors.Path.touch", {"self": str(mark)}),
        ("train.config.targets.importlib.import_module", {"name": "evil"}),
        ("train.models.hf_open.torch.load", {"f": str(tensors), "weights_only": False}),
        ("train.report.environment.subprocess.run", {"args": words}),
        ("train.config.targets.os.mkdir", {"path": str(mark)}),
        ("torch.nn.modules.module.torch.load", {"f": str(tensors), "weights_only": False}),
    ]


def foreign_configs(here: Path, full: bool) -> str:
    """Each payload as the model, the task and the data of a folder, and once more with trust, to
    see that it fires.
    """
    codes, job = start(here, 1, argv(here, "data.eval_fraction=0.2"))
    assert codes == [0], job.told()
    mark, folder = here / "mark", here / "run"
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    refused = fired = 0
    sections = ("model", "task", "data") if full else ("model",)
    with chdir(here):
        for number, (target, args) in enumerate(payloads(here, mark)):
            for section in sections:
                key = "source" if section == "data" else "target"
                config = {**kept, section: {**kept[section], key: target, "args": args}}
                (folder / "config.yaml").write_text(yaml.safe_dump(config))
                for call in _calls(folder, section):
                    refused += _is_refused(call)
                    assert not mark.exists(), f"{section} {target}: executed"
            if full or number % 5 == 0:  # a process each
                fired += _fires(target, args, mark)
    assert fired >= (15 if full else 4), f"only {fired} payloads fire where they are trusted"
    return f"executed: 0 of {refused} refused; {fired} of the payloads fire with trust"


def _calls(folder: Path, section: str) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = [lambda: evaluate(folder, [])]
    return [*calls, lambda: train.load(folder)] if section == "model" else calls


def _is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except NotTrusted:
        return True
    raise AssertionError("a payload was accepted")


def _fires(target: str, args: dict[str, Any], mark: Path) -> bool:
    """In a process of its own, as train.load(trust=True) would call it."""
    code = (
        "from train.config import resolve\nfrom train.config.targets import "
        f"make_importable\nmake_importable()\nresolve({target!r}, 'train.models')(**{args!r})"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=environment,
        cwd=mark.parent,
        check=False,
    )
    found = mark.exists()
    if mark.is_dir():
        mark.rmdir()
    mark.unlink(missing_ok=True)
    return found


ROWS = (
    Row(
        "30b",
        "routes of secrets",
        "each way of writing one, in configs, code, shells, logs and notebooks, as a text and in "
        "git.patch (added, removed, unchanged); each form of a known value; each way to the "
        "screen, in a process of its own",
        "no canary; commits, hashes, ids, tokenizers and code stay readable",
        routes,
    ),
    Row(
        "31c",
        "configs of foreign folders",
        "functions that write, run or unpickle as model, task and data of a run folder; "
        "train.load, train.evaluate",
        "refused by name, nothing imported or called",
        foreign_configs,
        slow=True,
    ),
)
