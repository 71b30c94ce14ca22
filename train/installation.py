"""How this package was installed: what its commands are called, and where its shipped files are.

A clone has ./launch.sh and scripts/; a wheel has the command `isobatch`, and the clone's configs/
as package data (pyproject.toml).
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
"""Above the package: the clone, or the folder into which a wheel was installed."""
# launch.sh is in no wheel (pyproject.toml): where it stands beside the package this is a clone.
IS_CLONE = (ROOT / "launch.sh").exists()
CONFIGS = ROOT / "configs" if IS_CLONE else PACKAGE / "configs"

IN_CLONE = {
    "launch": "./launch.sh",
    "train": "python -m train.accumulate",
    "doctor": "./launch.sh doctor",
    "compare": "python scripts/compare.py",
    "new": "python scripts/new.py",
    "page": "python scripts/page.py",
    "prepare": "python scripts/prepare.py",
    "sweep": "python scripts/sweep_local.py",
    "verify": "python scripts/verify.py",
}
"""What a clone has a script for; the others are modules of the package."""


def command(name: str) -> str:
    """How the reader of a message starts a subcommand of `isobatch`, here."""
    if not IS_CLONE:
        return f"isobatch {name}"
    return IN_CLONE.get(name, f"python -m train.{name}")


LAUNCH = command("launch")
LAUNCH_NAME = LAUNCH.removeprefix("./")
"""Its name in a sentence."""


def how_to_install(extra: str) -> str:
    """What to run for an optional dependency of pyproject.toml, such as `hf`."""
    by_pip = f"pip install 'isobatch[{extra}]'"
    return f"EXTRAS={extra} {LAUNCH} ..., or {by_pip}" if IS_CLONE else by_pip


def find_shipped(path: Path) -> Path:
    """`path`, or the shipped file of that name where there is none: `configs/data/iris.csv`."""
    # A file of the user's own wins over the shipped one of the same name.
    if path.exists() or path.parts[:1] != ("configs",) or ".." in path.parts:
        return path
    shipped = CONFIGS.joinpath(*path.parts[1:])
    return shipped if shipped.exists() else path


def find_config(path: Path) -> Path:
    """As find_shipped, also by the name alone: `digits.yaml` for `configs/digits.yaml`."""
    config = find_shipped(path)
    if config.exists() or path.is_absolute():
        return config
    by_name = find_shipped("configs" / path)
    return by_name if by_name.exists() else path
