"""A key is one field: what it decides, its range and its text stand there, or it is refused."""

import ast
import inspect
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated

import pytest

from train.config import is_execution, is_neutral, recipe, schema
from train.config.annotations import AT_LEAST_1, EXECUTION, MATHEMATICS, NEUTRAL, Effect, one_of
from train.config.keys import KEYS, Key, keys_of


@dataclass(frozen=True)
class Section:
    steps: Annotated[int | None, NEUTRAL, AT_LEAST_1] = None
    names: Annotated[list[str], MATHEMATICS] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    mode: Annotated[str, EXECUTION, one_of("a", "b")] = "a"
    section: Section = field(default_factory=Section)


def test_a_key_is_all_that_its_field_states() -> None:
    assert dict(keys_of(Whole())) == {
        "mode": Key(type=str, default="a", effect=EXECUTION, values=one_of("a", "b")),
        "section.steps": Key(
            type=int | None, default=None, effect=Effect.NEUTRAL, values=AT_LEAST_1
        ),
        "section.names": Key(type=list[str], default=[], effect=MATHEMATICS, values=None),
    }


def test_a_key_that_does_not_state_its_effect_is_refused() -> None:
    @dataclass(frozen=True)
    class Bare:
        steps: int = 1

    @dataclass(frozen=True)
    class Ranged:
        steps: Annotated[int, AT_LEAST_1] = 1

    @dataclass(frozen=True)
    class Torn:
        steps: Annotated[int, MATHEMATICS, EXECUTION] = 1

    for section in (Bare(), Ranged(), Torn()):
        with pytest.raises(TypeError, match=r"the field of x\.steps must state one effect"):
            list(keys_of(section, "x."))


@pytest.mark.parametrize("module", [recipe, schema], ids=lambda module: module.__name__)
def test_each_field_has_a_text_below_it(module: ModuleType) -> None:
    without = fields_without_text(inspect.getsource(module))

    # Those that are sections: the class says what they hold.
    assert [name for name in without if name not in SECTION_FIELDS] == []


SECTION_FIELDS = {f"Config.{name.partition('.')[0]}" for name in KEYS if "." in name}


def test_a_field_without_a_text_is_noticed() -> None:
    source = 'class A:\n    x: int = 1\n    """What it is."""\n    y: int = 2\n    z: int = 3\n    "Z."\n'

    assert fields_without_text(source) == ["A.y"]


def fields_without_text(source: str) -> list[str]:
    without = []
    for section in ast.parse(source).body:
        if not isinstance(section, ast.ClassDef):
            continue
        for statement, below in zip(section.body, [*section.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign):
                continue
            match below:
                case ast.Expr(value=ast.Constant(value=str())):
                    pass
                case _:
                    without.append(f"{section.name}.{ast.unparse(statement.target)}")
    return without


def test_what_a_key_decides() -> None:
    assert not is_execution("seed")
    assert not is_execution("model.args.hidden")
    assert is_execution("data.workers")
    assert is_execution("memory.limit_gib")
    assert not is_neutral("memory.limit_gib")
    assert is_neutral("batch.micro")
    assert is_neutral("evaluate.sets.other")


def test_a_key_of_another_version_is_like_the_others_of_its_section() -> None:
    """The config of a run folder may hold it."""
    assert is_neutral("log.gone")
    assert is_execution("memory.gone")
    assert not is_neutral("memory.gone")
    assert not is_execution("runtime.gone")
    assert not is_execution("gone")
