"""Types the blocks of a page in the current folder: python -m tests.house.type_blocks PAGE

Commands that train on one process are called in this one: a fresh interpreter would spend seconds
on imports for each. All else (several ranks, scripts, pytest) is started as it is typed. Ends with
1 at the first block that fails.
"""

import importlib
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from accelerate.state import AcceleratorState

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
ENTRIES = ("train.accumulate", "train.standard", "train.evaluate", "train.verify")


def main(page: Path) -> None:
    blocks = FENCE.findall(page.read_text())
    for kind, text in blocks:  # files first: a page may show one below the command that needs it
        if kind in ("python", "yaml") and (named := FILE.match(text)):
            path = Path(named[1])
            assert not path.exists(), f"{path} is there twice"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    sys.path.append("my")
    importlib.invalidate_caches()
    for kind, text in blocks:
        assert kind in ("bash", "python", "yaml", "text", "diff"), (
            f"a block of kind {kind}, which nobody runs"
        )
        assert kind != "yaml" or FILE.match(text), f"a YAML block that is no file:\n{text}"
        if kind == "diff":
            subprocess.run(["git", "apply", "-"], input=text, text=True, check=True)
            print("applied", text.splitlines()[0], flush=True)
        elif kind == "bash":
            for command in text.splitlines():
                type_command(command)
        elif kind == "python" and not FILE.match(text):
            with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
                file.write(text)
                file.flush()
                runpy.run_path(file.name)
            print("ran", text.splitlines()[0], "...", flush=True)


def type_command(command: str) -> None:
    print("$", command, flush=True)
    words = shlex.split(command)
    words = words[2:] if words[:2] == ["python", "-m"] else words
    if words[0] == "python" and words[1] == "scripts/verify.py":
        words = ["train.verify", *words[2:]]
    code = (
        call(*words)
        if words[0] in ENTRIES
        else subprocess.run(command, shell=True, check=False).returncode
    )
    if code != 0:
        sys.exit(f"exit code {code}: {command}")


def call(module: str, *arguments: str) -> int:
    entry = importlib.import_module(module)
    AcceleratorState._reset_state()  # it knows one precision per process
    if hasattr(entry, "compute_gradient") and module != "train.verify":
        return entry.main(arguments, module.removeprefix("train."), entry.compute_gradient)
    return entry.main(arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
