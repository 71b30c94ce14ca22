"""data.normalize against a scaled logistic regression, by the same cross-validation over five
seeds.

python -m tests.campaigns.scaled_tables

Penguins, wine and breast cancer come with palmerpenguins and scikit-learn, which is the reference
too. Neither belongs to the project: pip install --target FOLDER scikit-learn palmerpenguins, and
PYTHONPATH=FOLDER.
"""

import contextlib
import io
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from tests.helpers import rows
from train.accumulate import compute_gradient
from train.main import main as train

ROOT = Path(__file__).parents[2]
SEEDS, FOLDS = 5, 5
WAYS = {
    "data.normalize, linear": (True, "[]"),
    "data.normalize, hidden: [32]": (True, "[32]"),
    "linear, as the data are": (False, "[]"),
    "hidden: [32], as the data are": (False, "[32]"),
}
TOLERANCE = 0.005  # of the mean accuracy over 25 folds, of the better of the two models


@dataclass(frozen=True)
class Table:
    name: str
    inputs: pd.DataFrame
    labels: pd.Series


def tables() -> Iterator[Table]:
    from palmerpenguins import load_penguins
    from sklearn.datasets import load_breast_cancer, load_wine

    penguins = load_penguins().dropna(subset=["bill_length_mm"]).reset_index(drop=True)
    columns = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    yield Table("penguins", penguins[columns], penguins["species"].astype(str))
    for name, load in (("wine", load_wine), ("breast cancer", load_breast_cancer)):
        found = load(as_frame=True)
        yield Table(name, found.data, found.target.map(lambda number: f"kind {number}"))


def reference(table: Table, kept: Any, held: Any) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    model.fit(table.inputs.iloc[kept], table.labels.iloc[kept])
    return float(model.score(table.inputs.iloc[held], table.labels.iloc[held]))


def ours(
    folder: Path, table: Table, kept: Any, held: Any, seed: int, normalize: bool, hidden: str
) -> float:
    """configs/csv.yaml on train.csv and test.csv; `hidden` layers of its model."""
    own = folder / "own"
    own.mkdir(parents=True)
    for split, chosen in (("train", kept), ("test", held)):
        table.inputs.assign(kind=table.labels).iloc[chosen].to_csv(
            own / f"{split}.csv", index=False
        )
    names = ", ".join(f'"{name}"' for name in table.inputs.columns)
    words = [
        str(ROOT / "configs" / "csv.yaml"),
        f"data.source={own}",
        f"data.columns={{inputs: [{names}], labels: kind}}",
        "data.eval_split=test",
        "data.eval_fraction=0.0",
        f"data.normalize={str(normalize).lower()}",
        f"model.args={{inputs: {len(table.inputs.columns)}, hidden: {hidden}, outputs: "
        f"{table.labels.nunique()}}}",
        f"seed={seed}",
        "evaluate={every_steps: null, best: null}",
        "name=run",
        f"output_dir={folder}",
        "wandb.mode=disabled",
    ]
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        code = train(words, "accumulate", compute_gradient)
    assert code == 0, said.getvalue()
    return float(rows(folder, "eval/accuracy")[-1]["eval/accuracy"])


def main() -> int:
    from sklearn.model_selection import StratifiedKFold

    datasets.disable_progress_bars()
    print(
        f"| table | rows | {' | '.join(('scikit-learn: scaled logistic regression', *WAYS))} "
        f"|\n|{'---|' * 7}"
    )
    is_reached = True
    with tempfile.TemporaryDirectory() as home:
        datasets.config.HF_DATASETS_CACHE = Path(home) / "cache"
        for table in tables():
            found: dict[str, list[float]] = {way: [] for way in ("reference", *WAYS)}
            for seed in range(SEEDS):
                folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
                for number, (kept, held) in enumerate(folds.split(table.inputs, table.labels)):
                    found["reference"].append(reference(table, kept, held))
                    for way, (normalize, hidden) in WAYS.items():
                        folder = (
                            Path(home) / f"{table.name}-{seed}-{number}-{normalize}-{len(hidden)}"
                        )
                        found[way].append(ours(folder, table, kept, held, seed, normalize, hidden))
            told = [f"{statistics.mean(values):.3f}" for values in found.values()]
            print(f"| {table.name} | {len(table.labels)} | {' | '.join(told)} |", flush=True)
            reached = (
                statistics.mean(found[way]) for way, (normalize, _) in WAYS.items() if normalize
            )
            is_reached &= max(reached) >= statistics.mean(found["reference"]) - TOLERANCE
    return int(not is_reached)


if __name__ == "__main__":
    sys.exit(main())
