"""Targets: found by file name or dotted path; errors say what is wrong; arguments fit the
signature.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from train.config.targets import (
    TargetError,
    check_arguments,
    make_importable,
    resolve,
    resolve_source,
)

HOUSE = {
    "__init__.py": "from house.shadow import shadow\n",
    "shadow.py": "def shadow():\n    pass\n\nclass Beside:\n    pass\n",
    "mlp.py": "class MLP:\n    pass\n\nclass Block:\n    pass\n",
    "causal_lm.py": "class CausalLM:\n    class Inner:\n        pass\n",
    "empty.py": "from json import loads\n\nclass Other:\n    pass\n",
    "broken.py": "import os\nimport no_such_package\n",
    "crash.py": "\n\nraise ValueError('boom')\n",
    "syntax.py": "x = 1\ndef f(:\n",
    "quits.py": "import sys\nsys.exit(3)\n",
    "constants.py": "VALUE = 3\n",
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `house` of models, and `loose`, a folder without __init__.py as in my/."""
    (tmp_path / "house").mkdir()
    for name, text in HOUSE.items():
        (tmp_path / "house" / name).write_text(text)
    (tmp_path / "loose" / "models").mkdir(parents=True)
    (tmp_path / "loose" / "models" / "net.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("house", "loose")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("mlp", "MLP"),
        ("causal_lm", "CausalLM"),
        ("house.mlp.Block", "Block"),
        ("house.causal_lm.CausalLM.Inner", "Inner"),
        ("loose.models.net.Net", "Net"),
        ("json.loads", "loads"),
        ("house.shadow", "shadow"),
        ("house.shadow.Beside", "Beside"),
    ],
)
@pytest.mark.usefixtures("house")
def test_a_target_is_found(target: str, name: str) -> None:
    assert resolve(target, "house").__name__ == name


@pytest.mark.parametrize(
    ("target", "optimizer"),
    [
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("muon", torch.optim.Muon),
        ("AdamW", torch.optim.AdamW),
        ("torch.optim.AdamW", torch.optim.AdamW),
        ("torch.optim.adamw.AdamW", torch.optim.AdamW),
    ],
)
def test_an_optimizer_is_found_in_torch(target: str, optimizer: type) -> None:
    assert resolve(target, "torch.optim") is optimizer


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mpl", "house has no 'mpl'; did you mean 'mlp'?"),
        ("MLPP", "did you mean 'mlp'?"),
        ("empty", "empty.py has no class or function named empty. There is: Other"),
        ("house.mpl.MLP", "house has no 'mpl'; did you mean 'mlp'?"),
        ("house.mlp.MPL", "house.mlp has no 'MPL'; did you mean 'MLP'?"),
        ("hous.mlp.MLP", "there is no module 'hous'; did you mean 'house'?"),
        (
            "house.mlp",
            "house.mlp is a module; it must be a class or a function. There is: MLP, Block",
        ),
        (
            "house.constants.VALUE",
            "house.constants.VALUE is a int; it must be a class or a function",
        ),
        (
            "broken",
            "importing house.broken failed: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("broken", "broken.py:2)"),
        ("crash", "importing house.crash failed: ValueError: boom (house/crash.py:3)"),
        ("house.crash.Model", "ValueError: boom"),
        ("syntax", "syntax.py:2)"),
        ("quits", "importing house.quits failed: SystemExit: 3"),
        ("../mlp", "it takes a name or a dotted path"),
        ("a..b", "it takes a name or a dotted path"),
        ("", "it takes a name or a dotted path"),
    ],
)
@pytest.mark.usefixtures("house")
def test_a_target_that_cannot_be_used_says_why(target: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        resolve(target, "house")
    assert message in str(caught.value)


def test_a_home_that_does_not_exist_shows_a_place_in_a_file() -> None:
    with pytest.raises(
        TargetError, match=r"importing no_home failed: ModuleNotFoundError.*\.py:\d+\)"
    ):
        resolve("mlp", "no_home")


def test_an_optimizer_with_a_typo_gets_the_nearest_name() -> None:
    with pytest.raises(TargetError, match=r"torch.optim has no 'adamx'; did you mean 'adam"):
        resolve("adamx", "torch.optim")


def test_a_source_that_is_no_function_of_ours_is_left_to_datasets(house: Path) -> None:
    (house / "train.csv").write_text("a,b\n")
    for source in ["imdb", "user/name.v2", "train.csv", "data/x.parquet", "wikitext-2"]:
        assert resolve_source(source) is None


@pytest.mark.usefixtures("house")
def test_a_dotted_source_is_a_function_of_the_users_own() -> None:
    source = resolve_source("json.loads")
    assert source is not None
    assert source.__name__ == "loads"
    with pytest.raises(TargetError, match="did you mean 'loads'"):
        resolve_source("json.laods")


def test_the_built_in_source_is_found() -> None:
    source = resolve_source("digits")
    assert source is not None
    assert source.__name__ == "digits"


def test_the_current_folder_and_my_become_importable_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["first"])
    # when
    make_importable()
    make_importable()
    # then
    assert sys.path == ["first", str(tmp_path), str(tmp_path / "my")]


class MLP:
    def __init__(self, inputs: int, hidden: list[int], outputs: int = 10) -> None: ...


class Plain:
    pass


def anything(**options: object) -> None: ...


def mixed(first: int, /, second: int, *rest: int, third: int = 3, **options: object) -> None: ...


@pytest.mark.parametrize(
    ("target", "args", "given", "wrong"),
    [
        (MLP, {"inputs": 1, "hidden": [2]}, (), {}),
        (
            MLP,
            {"inputs": 1, "hidden": [2], "hiden": [3]},
            (),
            {
                "hiden": (
                    "MLP takes no argument 'hiden'; did you mean 'hidden'? It takes: inputs, hidden"
                )
            },
        ),
        (
            MLP,
            {"hidden": [2]},
            (),
            {"inputs": "MLP needs the argument 'inputs', which is not given"},
        ),
        (Plain, {"a": 1}, (), {"a": "Plain takes no argument 'a'. It takes none"}),
        (anything, {"a": 1}, (), {}),
        (mixed, {"a": 1}, ("first",), {"second": "needs the argument 'second'"}),
        (torch.optim.AdamW, {"weight_decay": 0.1}, ("params", "lr"), {}),
        (
            torch.optim.AdamW,
            {"wieght_decay": 0.1},
            ("params", "lr"),
            {"wieght_decay": "did you mean 'weight_decay'?"},
        ),
        (
            torch.optim.AdamW,
            {"params": []},
            ("params", "lr"),
            {"params": "given 'params' by Isobatch itself"},
        ),
        (print, {"sep": ""}, (), {}),
        (dict.fromkeys, {"a": 1}, (), None),
    ],
)
def test_arguments_are_checked_by_signature(
    target: Callable[..., Any],
    args: dict[str, Any],
    given: tuple[str, ...],
    wrong: dict[str, str] | None,
) -> None:
    found = dict(check_arguments(target, args, given))
    if wrong is not None:
        assert found.keys() == wrong.keys()
        assert all(text in found[key] for key, text in wrong.items())


def test_a_callable_without_a_signature_passes() -> None:
    assert (
        check_arguments(
            type("Odd", (), {"__signature__": 3, "__call__": lambda self: None})(), {"a": 1}
        )
        == []
    )
