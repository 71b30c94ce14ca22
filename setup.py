"""What pyproject.toml cannot say: configs/ of the repository is train/configs of the wheel."""

from pathlib import Path

from setuptools import find_packages, setup

CONFIGS = [
    ".".join(("train", *folder.parts))
    for folder in (Path("configs"), *sorted(Path("configs").iterdir()))
    if folder.is_dir()
]

setup(
    packages=find_packages(include=["train", "train.*"]) + CONFIGS,
    package_dir={"train.configs": "configs"},
    package_data={
        "": ["*.yaml", "*.csv"],
        "train": ["comparison/*.jinja", "data/*.npz", "launching/*.txt"],
    },
)
