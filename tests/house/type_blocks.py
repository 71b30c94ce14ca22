"""Types the blocks of a page in the current folder: python -m tests.house.type_blocks PAGE

Commands of one process are called in this one: a fresh interpreter would spend seconds on imports
for each. All else (several ranks, sweeps, pytest) is started as it is typed. Files in my/ that
other pages of the same folder show are written too: a page may use them. Ends with 1 at the first
block that fails.
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
TRAINING = ("train.accumulate", "train.standard")
ENTRIES = {
    "train.compare": "train.compare",
    "train.evaluate": "train.evaluate",
    "train.merge": "train.merge",
    "train.new": "train.new",
    "train.plan": "train.plan.__main__",
    "train.prepare": "train.prepare",
    "train.verify": "train.verify",
}


def main(page: Path) -> None:
    blocks = FENCE.findall(page.read_text())
    # files first: a page may show one below the command that needs it
    write_files(page, folders=("my", "train"))
    if page.parent.name == "guide":
        for other in sorted(set(page.parent.glob("*.md")) - {page}):
            write_files(other, folders=("my",))
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


def write_files(page: Path, folders: tuple[str, ...]) -> None:
    for kind, text in FENCE.findall(page.read_text()):
        named = FILE.match(text)
        if kind not in ("python", "yaml") or not named:
            continue
        path = Path(named[1])
        if path.parts[0] not in folders:
            continue
        assert not path.exists(), f"{path} is there twice"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def type_command(command: str) -> None:
    print("$", command, flush=True)
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    elif words[0] == "python" and words[1].startswith("scripts/"):
        words = [f"train.{Path(words[1]).stem}", *words[2:]]
    if words[0] in TRAINING:
        code = train(*words)
    elif words[0] in ENTRIES:
        code = importlib.import_module(ENTRIES[words[0]]).main(words[1:])
    else:
        code = subprocess.run(command, shell=True, check=False).returncode
    if code != 0:
        sys.exit(f"exit code {code}: {command}")


def train(module: str, *arguments: str) -> int:
    entry = importlib.import_module(module)
    AcceleratorState._reset_state()  # it knows one precision per process
    return entry.main(arguments, module.removeprefix("train."), entry.compute_gradient)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
