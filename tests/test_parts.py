"""Features beside the loop: each can be left out, and nothing but the list of parts knows it."""

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import train.run
from tests.conftest import run_ranks
from tests.helpers import Array, argv, record, rows
from train.accumulate import compute_gradient
from train.batch.window import Batch
from train.main import main
from train.parts import Part, Parts
from train.setting import Setting
from train.tasks.classification import Classification

PACKAGE = Path(train.run.__file__).parent
RUN = ast.parse((PACKAGE / "run.py").read_text())


def listed() -> list[str]:
    """The modules whose `part(...)` stands in list_parts, from the inside out."""
    (function,) = [n for n in RUN.body if isinstance(n, ast.FunctionDef) and n.name == "list_parts"]
    (entries,) = [n.value for n in function.body if isinstance(n, ast.Return)]
    assert isinstance(entries, ast.Tuple)
    return [entry.func.value.id for entry in entries.elts]  # type: ignore[attr-defined]


def home(name: str) -> str:
    """`ema` -> train.evaluation.ema: where run.py imports it from."""
    (found,) = [
        f"{node.module}.{alias.name}"
        for node in RUN.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == name
    ]
    return found


def test_a_part_has_eleven_fields() -> None:
    names = (
        "name gradient windows shares evaluation save metrics of_rank state exports closing_line"
    )

    assert [field.name for field in fields(Part)] == names.split()


@pytest.mark.parametrize("name", listed())
def test_only_the_list_knows_a_feature(name: str) -> None:
    """So that its file, its import and its entry are all there is to take away."""
    module = home(name)
    package, _, last = module.rpartition(".")
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                taken = {alias.name for alias in node.names}
                if node.module == module or (node.module == package and last in taken):
                    users.add(path.relative_to(PACKAGE).as_posix())
    uses = [node for node in ast.walk(RUN) if isinstance(node, ast.Name) and node.id == last]

    assert users == {"run.py"}
    assert len(uses) == 1


class Writing(Classification):
    """It has something to show beside each evaluation."""

    def samples(self, model: Any, batch: Batch, decode: Any) -> list[dict[str, str]]:
        return [{"class": str(int(label))} for label in model(batch["inputs"]).argmax(1)]


GIVEN = (
    "task=tests.test_parts.Writing",
    "data.eval_fraction=0.2",
    "evaluate.every_steps=2",
    "ema.decay=0.5",
    "noise_scale.every_steps=1",
    "profile.steps=[2,3]",
)


def train_without(arguments: list[str], loop: str, name: str | None) -> tuple[Array, list[str]]:
    """(last weights, names of the parts that were there) of a run without one part, or with all."""
    everything = train.run.list_parts
    kept: list[str] = []

    def without(*args: Any) -> tuple[Part, ...]:
        parts = list(everything(*args))
        if name is not None:
            del parts[listed().index(name)]
        kept.extend(part.name for part in parts)
        return tuple(parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.list_parts", without)
        trace = record(arguments, loop)
    return trace.weights[-1], kept


@pytest.fixture(name="with_all", scope="module")
def trained_with_all_parts(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Array, list[float]]]:
    """{loop: (last weights, losses)}"""
    found = {}
    for loop, ranks in LOOPS:
        folder = tmp_path_factory.mktemp(loop)
        weights, kept = run_ranks(ranks, train_without, argv(folder, *GIVEN), loop, None)[0]
        assert len(kept) == len(listed())
        found[loop] = weights, [row["train/loss"] for row in rows(folder)]
    return found


LOOPS = (("standard", 1), ("accumulate", 2))


@pytest.mark.parametrize(("loop", "ranks"), LOOPS)
@pytest.mark.parametrize("name", listed())
def test_a_run_trains_without(
    with_all: dict[str, tuple[Array, list[float]]], name: str, loop: str, ranks: int, tmp_path: Path
) -> None:
    """The same weights to the last bit: none of them computes anything that is trained."""
    expected, losses = with_all[loop]

    for weights, kept in run_ranks(ranks, train_without, argv(tmp_path, *GIVEN), loop, name):
        assert (weights == expected).all()
        assert len(kept) == len(listed()) - 1
    assert [row["train/loss"] for row in rows(tmp_path)] == losses


def test_parts_stand_around_each_other_in_their_order() -> None:
    calls: list[str] = []

    def part(name: str) -> Part:
        def around(inner: Any) -> Any:
            def watched() -> str:
                calls.append(f"{name} begins")
                result: str = inner()
                calls.append(f"{name} ends")
                return f"{name}({result})"

            return watched

        return Part(
            name=name,
            gradient=around,
            evaluation=around,
            save=around,
            metrics=lambda metrics: {**metrics, name: float(len(metrics))},
            closing_line=lambda: f"{name} says",
        )

    parts = Parts((part("inner"), Part(name="nothing"), part("outer")))

    for chain in (parts.gradient, parts.evaluation, parts.save):
        calls.clear()
        assert chain(lambda: "core")() == "outer(inner(core))"
        assert calls == ["outer begins", "inner begins", "inner ends", "outer ends"]
    assert parts.metrics(dict) == {"inner": 0.0, "outer": 1.0}
    assert parts.closing_lines() == ["inner says", "", "outer says"]
    assert parts.states() == parts.exports() == {}


def test_a_part_may_have_state_and_export_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved under its name, brought back where the run resumes, and in final/ under the name it
    gives.
    """

    class Counter:
        steps = 0

        def state_dict(self) -> dict[str, int]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.steps = state["steps"]

    counters: list[Counter] = []
    everything = train.run.list_parts

    def with_counter(setting: Setting, report: Any) -> tuple[Part, ...]:
        counter = Counter()
        counters.append(counter)

        def counting(compute_gradient: Any) -> Any:
            def counted(*args: Any) -> Any:
                counter.steps += 1
                return compute_gradient(*args)

            return counted

        module = setting.learner.module
        part = Part(name="counter", gradient=counting, state=counter, exports={"twin": module})
        return (*everything(setting, report), part)

    monkeypatch.setattr("train.run.list_parts", with_counter)
    given = argv(tmp_path, "checkpoint.resume=auto")
    for steps in (3, 5):
        assert main([*given, f"duration={{steps: {steps}}}"], "accumulate", compute_gradient) == 0

    assert [counter.steps for counter in counters] == [3, 5]
    final = tmp_path / "run" / "final"
    assert (final / "twin.safetensors").read_bytes() == (final / "model.safetensors").read_bytes()
