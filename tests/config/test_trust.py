"""What the config of a foreign run folder may name: nothing of it is called, or imported, that is
not known.
"""

import shutil
import sys
from pathlib import Path

import pytest

import train
from tests.helpers import argv
from train.accumulate import compute_gradient
from train.config import NotTrusted, load, needs_trust
from train.config.problems import ConfigError
from train.config.read import read_yaml
from train.config.targets import make_importable
from train.evaluate import evaluate
from train.main import main

MODELS = [
    *(
        "os.system",
        "subprocess.run",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "shutil.rmtree",
    ),
    *(
        "importlib.import_module",
        "runpy.run_path",
        "pickle.load",
        "torch.load",
        "torch.hub.load",
        "os.popen",
    ),
    *(
        "train.errors.os.system",
        "train.models.hf_open.torch.hub.load",
        "train.config.targets.importlib.import_module",
    ),
    *(
        "train.models.weights.load_final",
        "train.models.init_from.load_initial",
        "train.models.hf_open.library",
    ),
    *(
        "torch.nn.modules.module.warnings.warn",
        "torch.nn.init.normal_",
        "torch.utils.cpp_extension.load",
    ),
    *(
        "transformers.pipeline",
        "my.helpers.os.system",
        "planted.touch",
        "train.tasks.resolve",
        "train.models.ModelError",
    ),
    *(
        "timm.create_model",
        "torch.nn.Module.load_state_dict",
        "antigravity.webbrowser.open",
        "train.load",
    ),
]
TASKS = [
    "os.system",
    "planted.touch",
    "resolve",
    "defaultdict",
    "train.tasks.resolve",
    "train.tasks.TaskError",
    "torch.nn.Linear",
]
SOURCES = [
    "os.system",
    "planted.touch",
    "pandas",
    "sql",
    "generator",
    "train.data.files.load_dataset",
    "train.data.sources",
]


HELPERS = """
import os
from torch import nn


class Net(nn.Sequential):
    def __init__(self, inputs, hidden, outputs):
        super().__init__(nn.Linear(inputs, outputs))
"""


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of nothing but our own things."""
    folder = tmp_path_factory.mktemp("own")
    rows = "\n".join(f"{i % 7},{i % 5},{i % 3}" for i in range(30))
    (folder / "points.csv").write_text(f"a,b,c\n{rows}\n")
    words = argv(
        folder,
        f"data={{source: {folder}/points.csv, eval_fraction: 0.2, columns: {{inputs: [a, b], "
        "labels: c}}",
        "model.args={inputs: 2, hidden: [4], outputs: 3}",
    )
    assert main(words, "accumulate", compute_gradient) == 0
    return folder / "run"


@pytest.fixture
def foreign(own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; in the current folder lie a module that leaves a mark when it is imported or called,
    and my/.
    """
    shutil.copytree(own_run, tmp_path / "foreign")
    mark = tmp_path / "mark"
    planted = (
        f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\ndef touch(**args): raise "
        "RuntimeError('planted')\n"
    )
    (tmp_path / "planted.py").write_text(planted)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "helpers.py").write_text(HELPERS)
    monkeypatch.chdir(tmp_path)
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("my", "helpers", "planted")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    return tmp_path / "foreign"


def change(folder: Path, old: str, new: str) -> None:
    file = folder / "config.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_our_own_folder_needs_no_trust(foreign: Path) -> None:
    assert train.load(foreign) is not None
    assert "loss" in evaluate(foreign, [])


def test_a_config_with_another_mistake_imports_nothing(foreign: Path) -> None:
    change(foreign, "target: mlp", "target: planted.touch\n  bogus: 1")

    with pytest.raises(ConfigError, match="bogus"):
        train.load(foreign)

    assert not Path("mark").exists()


@pytest.mark.parametrize("target", MODELS)
def test_a_model_that_is_not_called(foreign: Path, target: str) -> None:
    change(foreign, "target: mlp", f"target: {target}")

    with pytest.raises(NotTrusted, match="trust=True") as refused:
        train.load(foreign)
    with pytest.raises(NotTrusted, match="--trust"):
        evaluate(foreign, [])

    assert f"model.target={target}" in str(refused.value)
    assert not Path("mark").exists()


@pytest.mark.parametrize("target", TASKS)
def test_a_task_that_is_not_called(foreign: Path, target: str) -> None:
    change(foreign, "target: classification", f"target: {target}")

    with pytest.raises(NotTrusted):
        evaluate(foreign, [])

    assert train.load(foreign) is not None, "the task of a model that is loaded does not matter"
    assert not Path("mark").exists()


@pytest.mark.parametrize("target", SOURCES)
def test_data_that_are_not_made(foreign: Path, target: str) -> None:
    config = foreign / "config.yaml"
    lines = config.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.strip().startswith("source:"))
    lines[place] = f"  source: {target}"
    config.write_text("\n".join(lines) + "\n")

    with pytest.raises((NotTrusted, ConfigError)):
        evaluate(foreign, [])

    assert not Path("mark").exists()


@pytest.mark.parametrize("key", ["transform", "eval_transform", "tokenizer"])
@pytest.mark.parametrize("target", ["planted.touch", "os.system"])
def test_helpers_of_the_data_that_are_not_called(foreign: Path, key: str, target: str) -> None:
    with_it = f"  {key}: {target}\n"
    config = foreign / "config.yaml"
    lines = [
        line
        for line in config.read_text().splitlines(keepends=True)
        if not line.startswith(f"  {key}:")
    ]
    lines.insert(next(i for i, line in enumerate(lines) if line.startswith("data:")) + 1, with_it)
    config.write_text("".join(lines))

    with pytest.raises(NotTrusted):
        evaluate(foreign, [])

    assert not Path("mark").exists()


@pytest.mark.parametrize(
    "args",
    [
        "trust_remote_code: true",
        "attn_implementation: somebody/kernels",
        "weights_only: false",
        "from_config: {use_kernels: true}",
        "url: 'https://example.org/?x=${oc.env:HF_TOKEN}'",
    ],
)
def test_arguments_that_run_code_or_spread_a_secret(
    foreign: Path, args: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-in-variable")
    change(foreign, "    inputs: 2\n", f"    inputs: 2\n    {args}\n")

    with pytest.raises(NotTrusted) as refused:
        evaluate(foreign, [])

    assert "canary" not in str(refused.value)


def test_ones_own_models_and_those_of_torch(foreign: Path) -> None:
    change(foreign, "target: mlp", "target: my.helpers.Net")
    with pytest.raises(Exception, match="does not fit"):  # it was made
        train.load(foreign)
    change(foreign, "target: my.helpers.Net", "target: helpers.Net")
    with pytest.raises(Exception, match="does not fit"):
        train.load(foreign)
    change(foreign, "target: helpers.Net", "target: torch.nn.Linear")
    with pytest.raises(ConfigError, match="takes no argument"):
        train.load(foreign)


def test_a_my_of_the_foreign_folder_is_not_ones_own(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (foreign / "my").mkdir()
    (foreign / "my" / "helpers.py").write_text("import os\nos.mkdir('mark')\nclass Net: pass\n")
    change(foreign, "target: mlp", "target: my.helpers.Net")
    monkeypatch.chdir(foreign)
    monkeypatch.delitem(sys.modules, "my", raising=False)

    with pytest.raises(NotTrusted):
        train.load(foreign)

    assert not Path("mark").exists()


def test_what_the_user_types_is_the_users_own(foreign: Path) -> None:
    with pytest.raises(Exception, match=r"model\.target|does not fit"):
        evaluate(foreign, ["model.target=tests.helpers.PerToken", "model.args={}"])


def test_the_closing_line_knows_what_evaluate_will_ask_for(foreign: Path) -> None:
    """It is a line to paste."""
    assert "--trust" not in (foreign / "log.txt").read_text()
    make_importable()  # as at the start of every run
    assert not needs_trust({"model.target": "my.helpers.Net", "data.source": "points.csv"}, foreign)
    assert needs_trust({"model.target": "tests.helpers.PerToken"}, foreign)


def test_with_trust_it_is_called(foreign: Path) -> None:
    change(foreign, "target: mlp", "target: planted.touch")

    with pytest.raises(Exception, match="planted"):
        train.load(foreign, trust=True)

    assert Path("mark").exists()


TEXT = "root:x:0:0:kanary:/root:/bin/bash\nme:x:1:1::/home:/bin/sh\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        "kanary",
        "-----BEGIN KEY-----\nkanary\n",
        "*kanary",
        "!kanary!x y",
        "[kanary",
        "a: b: kanary",
        "\x00kanary",
    ],
)
def test_a_file_that_is_no_config_is_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    (tmp_path / "mine.yaml").write_text("extends: file\n")

    with pytest.raises(ConfigError) as refused:
        load([str(tmp_path / "mine.yaml")])

    assert "kanary" not in str(refused.value)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match="not a file"):
            read_yaml(path)
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ConfigError, match="16 MiB"):
        read_yaml(tmp_path / "large.yaml")
