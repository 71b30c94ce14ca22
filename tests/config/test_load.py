"""From a command line to a Config: files, layers, overrides and all problems at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from train.config import ConfigError, Loaded, load, run_name

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path
    for path in sorted((ROOT / "configs").glob("**/*.yaml"))
    if not {"accelerate", "sweeps"} & set(path.parts)
]
BASE = """\
batch: {effective: 128, accumulation_steps: 4}
data: {source: imdb}
model: {target: torch.nn.Linear, args: {in_features: 4, out_features: 2}}
task: {target: torch.nn.MSELoss}
duration: {epochs: 20}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with base.yaml in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(argv)
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def the_problem(*argv: str) -> str:
    [problem] = problems(*argv)
    return problem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_of_the_house_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load([str(path)]).path == path


def test_there_are_configs_to_load() -> None:
    assert CONFIGS


# Command line


def test_the_config_may_stand_before_or_after_overrides_and_options() -> None:
    loaded = [
        load(argv)
        for argv in (["base.yaml", "seed=3", "--plan"], ["--plan", "seed=3", "base.yaml"])
    ]
    assert loaded[0] == loaded[1]
    assert loaded[0].config.seed == 3
    assert loaded[0].overrides == ("seed=3",)
    assert loaded[0].flags == {"--plan"}
    assert loaded[0].path == Path("base.yaml")


@pytest.mark.parametrize(("argv", "status"), [(["--help"], 0), (["base.yaml", "-h"], 0), ([], 2)])
def test_help_and_no_arguments_print_the_usage(
    argv: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(argv)
    assert caught.value.code == status
    printed = capsys.readouterr().out
    assert "usage: CONFIG [key=value ...]" in printed
    assert "--print-config" in printed


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--opt.lr=1", "command line: got --opt.lr=1; keys have no dashes: write optimizer.lr=1"),
        ("--learning-rate=1", "write optimizer.lr=1"),
        ("--seed=3", "write seed=3"),
        (
            "-x",
            "command line: got -x; there is no such option. The options are: --plan, ",
        ),
        ("a..b=1", "got a..b=1; a key is written section.name=value"),
        ("=3", "a key is written"),
        ("seed=", "command line: seed: got no value. To unset it, write seed=null"),
        ("name=[1", "command line: name: got [1; it is not valid YAML"),
        ("extends=base.yaml", "command line: extends: only a file extends others"),
        (
            "other.yaml",
            "it takes one config; got base.yaml and other.yaml. For a key, write "
            "base.yaml=other.yaml",
        ),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(argument: str, message: str) -> None:
    assert message in the_problem("base.yaml", argument)


def test_a_key_and_its_value_apart_are_told_how_to_join() -> None:
    assert "write seed=VALUE" in the_problem("base.yaml", "--seed", "3")


def test_overrides_without_a_config_are_refused() -> None:
    assert "it takes one config; got none" in the_problem("seed=1")


def test_a_path_may_hold_an_equals_sign() -> None:
    assert load([write("runs/lr=1/config.yaml", BASE)]).overrides == ()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=1e-8", "optimizer.lr", 1e-8),
        ("optimizer.args.eps=1e-3", "optimizer.args.eps", 1e-3),
        ("batch.micro=8", "batch.micro", 8),
        ("name=null", "name", None),
        ("data.split=train[:10%]", "data.split", "train[:10%]"),
        ("name=a=b", "name", "a=b"),
        ("data.columns={inputs: image}", "data.columns", {"inputs": "image"}),
        ("optimizer.args.betas=[0.8,0.9]", "optimizer.args.betas", [0.8, 0.9]),
        ("seed=${log.every_steps}", "seed", 10),
        ("task=torch.nn.L1Loss", "task.target", "torch.nn.L1Loss"),
        ("data.columns.inputs=null", "data.columns", {}),
        ("optimizer.args.fused=null", "optimizer.args", {"fused": None}),
        ("seed=null", "seed", 0),
        ("profile.steps=[2,'${max_nonfinite_steps}']", "profile.steps", [2, 10]),
    ],
)
def test_values_are_parsed_as_omegaconf_does(override: str, key: str, value: object) -> None:
    config = OmegaConf.structured(load(["base.yaml", override]).config)
    assert OmegaConf.select(config, key) == value


@pytest.mark.parametrize("key", ["optimizer.args.betas[1]", "optimizer.args.betas.1"])
def test_an_element_of_a_list_is_overridden(key: str) -> None:
    path = write("x.yaml", "extends: base.yaml\noptimizer: {args: {betas: [0.8, 0.9]}}\n")
    assert load([path, f"{key}=0.99"]).config.optimizer.args == {"betas": [0.8, 0.99]}
    assert "there is no element" in the_problem(path, "optimizer.args.betas[2]=1")


def test_the_command_line_is_one_layer() -> None:
    message = the_problem("base.yaml", "duration.steps=3", "duration.samples=4")
    assert message.startswith(
        "command line: duration: got duration.steps=3 and duration.samples=4; they exclude"
    )
    config = load(["base.yaml", "batch.micro=8"]).config
    assert (config.batch.effective, config.batch.micro, config.batch.accumulation_steps) == (
        128,
        8,
        None,
    )


# Files


def test_extended_files_lie_below_relative_to_the_file_that_names_them() -> None:
    write("a/low.yaml", "extends: ../base.yaml\nseed: 1\nlog: {every_steps: 1}\nname: low\n")
    write("a/mid.yaml", "seed: 2\nlog: {every_steps: 2}\n")
    path = write("b/top.yaml", "extends: [../a/low.yaml, ../a/mid.yaml]\nseed: 3\n")
    config = load([path, "batch.micro=8"]).config
    assert (config.name, config.log.every_steps, config.seed, config.batch.micro) == (
        "low",
        2,
        3,
        8,
    )


def test_files_that_extend_each_other_are_refused_with_the_chain() -> None:
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: a.yaml\n")
    assert (
        "b.yaml: extends: the files extend each other: a.yaml -> b.yaml -> a.yaml"
        in the_problem("a.yaml")
    )


def test_one_file_may_be_extended_twice() -> None:
    write("a.yaml", "extends: base.yaml\n")
    write("b.yaml", "extends: base.yaml\nseed: 1\n")
    assert load([write("c.yaml", "extends: [a.yaml, b.yaml]\n")]).config.seed == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: is empty"),
        ("# nothing\n", "x.yaml: is empty"),
        ("- a\n", "x.yaml: holds a list, not a mapping"),
        ("3\n", "x.yaml: holds one text or number, not a mapping"),
        ("seed: 1\nname: a\nseed: 2\n", "x.yaml:3: found duplicate key seed"),
        ("log:\n  every_steps: 1\n  every_steps: 1\n", "x.yaml:3: found duplicate key every_steps"),
        ("seed: 1\nname: [a\n", "x.yaml:3: "),
        (
            "log:\n\tevery_steps: 1\n",
            "x.yaml:2: found character that cannot start any token. YAML indents",
        ),
        ("name: ${seed\n", "x.yaml: name: no viable alternative"),
        ("extends: 3\n", "x.yaml: extends: got 3; it takes a path or a list of paths"),
        (
            "extends: bse.yaml\n",
            "x.yaml: extends: there is no file bse.yaml; did you mean base.yaml?",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where(text: str, message: str) -> None:
    assert message in the_problem(write("x.yaml", text))


@pytest.mark.parametrize("text", ["- a\n", "name: 1.10\n"])
def test_a_readable_file_is_not_said_to_be_unreadable(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load([write("x.yaml", text)])

    assert "cannot be read" not in str(error.value)
    assert len(str(error.value).splitlines()) == 2, "one problem, in one line"


def test_a_folder_is_no_config() -> None:
    assert "is a folder" in the_problem(".")


def test_text_in_another_encoding_is_refused() -> None:
    Path("x.yaml").write_bytes("name: é\n".encode("latin1"))
    assert "x.yaml: cannot be read as YAML" in the_problem("x.yaml")


@pytest.mark.parametrize("name", ["configs/digts.yaml", "digits", "configs/digits", "digits.yml"])
def test_a_config_that_does_not_exist_suggests_the_nearest(name: str) -> None:
    write("configs/digits.yaml", BASE)
    write("configs/accelerate/digits2.yaml", BASE)
    assert (
        the_problem(name)
        == f"command line: there is no file {name}; did you mean configs/digits.yaml?"
    )


def test_launcher_files_and_sweeps_are_not_suggested() -> None:
    write("configs/accelerate/ddp.yaml", "x: 1\n")
    assert "did you mean" not in the_problem("ddp")


# Values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "batch.effective=many",
            "command line: batch.effective: got 'many'; it takes a whole number or null",
        ),
        ("seed=1.5", "command line: seed: got 1.5; it takes a whole number"),
        (
            "duration.samples=1e3",
            "got 1000.0; it takes a whole number or null. Write duration.samples=1000",
        ),
        ("seed=true", "seed: got true; it takes a whole number"),
        ("seed=None", "None is written null"),
        ("seed=[1]", "seed: got [1]; it takes a whole number"),
        ("seed.x=1", "seed: got {'x': 1}; it takes a whole number"),
        ("optimizer.lr=fast", "optimizer.lr: got 'fast'; it takes a number"),
        ("runtime.tf32=maybe", "runtime.tf32: got 'maybe'; it takes true or false"),
        (
            "batch.micro=1.5",
            "batch.micro: got 1.5; it takes a whole number of 1 or more, a list of them",
        ),
        (
            "batch.micro=most",
            "batch.micro: got 'most'; it takes a whole number of 1 or more, a list of them",
        ),
        ("name=no", 'name: got no, which YAML reads as false. Write "no". Set: \'name="no"\''),
        ("on_nonfinite=off", "on_nonfinite: got off, which YAML reads as false"),
        (
            "name=1.10",
            'name: got 1.10, which YAML reads as the number 1.1. Write "1.10". Set: \'name="1.10"\'',
        ),
        ("wandb.tags=[010, a]", "Set: 'wandb.tags=[\"010\", a]'"),
        (
            "duration.steps=1:30",
            "duration.steps: got 1:30, which YAML reads as the number 90 (base 60). Write 90",
        ),
        (
            "data.columns.inputs=yes",
            "data.columns.inputs: got true; `yes` and `on` are YAML for true",
        ),
        (
            "data.columns={a: [1]}",
            "data.columns.a: got [1]; it takes the name of a column, or a list of names",
        ),
        ("profile.steps=3", "profile.steps: got 3; it takes a list of whole numbers"),
        ("profile.steps=[a]", "profile.steps[0]: it takes a list of whole numbers: Value 'a'"),
        (
            "profile.steps=[1,'${nope}']",
            "profile.steps: cannot be resolved: Interpolation key 'nope'",
        ),
        ("wandb.tags={a: 1}", "wandb.tags: got {'a': 1}; it takes a list of texts"),
        ("model.args=3", "model.args: got 3; it takes a mapping"),
        (
            "name=${nope}",
            "command line: name: cannot be resolved: Interpolation key 'nope' not found",
        ),
        ("seed=${output_dir}", "seed: cannot be resolved: While dereferencing interpolation"),
        ("optimizer.args.eps=${oc.env:NO_SUCH}", "optimizer.args.eps: cannot be resolved"),
        (
            "optimizer.args.eps='???'",
            "command line: optimizer.args.eps: must be stated. Add optimizer.args.eps=...",
        ),
        ("log.every_steps=0", "command line: log.every_steps: got 0; it must be 1 or more"),
        (
            "precision=float8",
            "command line: precision: got 'float8'; it takes one of fp32, bf16, fp16, fp64",
        ),
        (
            "optimizer.args.lr=1",
            "command line: optimizer.args.lr: got 1; the rate has its own key",
        ),
        (
            "lr=1",
            "command line: lr: got 1; there is no such key. Here it is optimizer.lr: write "
            "optimizer.lr=1",
        ),
        ("duration=null", "base.yaml: duration: got nothing; a run needs an end"),
        ("batch.effective=null", "base.yaml: batch: got batch.accumulation_steps=4 alone"),
        (
            "model=torch.nn.Liner",
            "command line: model.target: torch.nn has no 'Liner'; did you mean 'Linear'?",
        ),
        (
            "model.args.bais=true",
            "command line: model.args.bais: Linear takes no argument 'bais'; did you mean 'bias'",
        ),
        (
            "model.args.in_features=null",
            "base.yaml: model.args.in_features: Linear needs the argument",
        ),
        (
            "optimizer.target=sdg",
            "command line: optimizer.target: torch.optim has no 'sdg'; did you mean 'sgd'?",
        ),
        (
            "optimizer.args.params=[1]",
            "optimizer.args.params: AdamW is given 'params' by Isobatch itself",
        ),
    ],
)
def test_a_wrong_override_is_one_problem_with_key_value_and_reason(
    override: str, message: str
) -> None:
    assert message in the_problem("base.yaml", override)


def test_the_problem_names_the_file_that_set_the_key() -> None:
    write("low.yaml", "extends: base.yaml\nseed: -1\n")
    path = write("top.yaml", "extends: low.yaml\nlog: {every_steps: 0}\n")
    assert [message.partition(": got")[0] for message in problems(path, "name=a/b")] == [
        "low.yaml: seed",
        "top.yaml: log.every_steps",
        "command line: name",
    ]


def test_a_missing_argument_is_the_problem_of_the_file_that_named_the_target() -> None:
    write("low.yaml", BASE.replace(", out_features: 2", ""))
    message = the_problem(write("top.yaml", "extends: low.yaml\n"), "model.args.bias=false")
    assert message.startswith(
        "low.yaml: model.args.out_features: Linear needs the argument 'out_features'"
    )


def test_what_must_be_stated_and_is_not_is_told() -> None:
    path = write("x.yaml", "batch: {effective: 8}\nduration: {steps: 1}\n")
    assert problems(path) == [
        f"x.yaml: {key}: must be stated. Add {key}=..."
        for key in ("data.source", "model.target", "task.target")
    ]


def test_all_problems_come_at_once_and_none_twice() -> None:
    # given a problem of each kind
    path = write(
        "x.yaml",
        "extends: base.yaml\nlearning_rate: 0.1\nseed: one\nprecision: fp8\nname: ${nope}\n"
        "model: {args: {in_features: 4, hiden: 3}}\ntask: torch.nn.MSELos\noptimizer: "
        "{args: {lr: 1}}\n",
    )
    # when, then
    keys = [message.split(": ")[1] for message in problems(path, "-x", "log.every_steps=0")]
    assert sorted(keys) == sorted(
        [
            "got -x; there is no such option. The options are",
            "learning_rate",
            "seed",
            "name",
            "log.every_steps",
            "precision",
            "optimizer.args.lr",
            "model.args.hiden",
            "task.target",
        ]
    )


def test_a_misspelt_key_is_not_also_missing() -> None:
    path = write("x.yaml", BASE.replace("epochs", "epoch").replace("source", "sorce"))
    assert [message.split(": ")[1] for message in problems(path)] == [
        "data.sorce",
        "duration.epoch",
    ]


# What comes out


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("float32", "fp32"),
        ("bfloat16", "bf16"),
        ("float16", "fp16"),
        ("half", "fp16"),
        ("fp64", "fp64"),
    ],
)
def test_long_names_of_precisions_become_short(name: str, short: str) -> None:
    assert load(["base.yaml", f"precision={name}"]).config.precision == short


def test_the_long_name_of_a_dtype_becomes_short() -> None:
    assert load(["base.yaml", "model.dtype=bfloat16"]).config.model.dtype == "bf16"


def test_interpolations_are_resolved_in_the_config_and_left_alone_in_the_yaml(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given
    monkeypatch.setenv("SECRET", "hunter2")
    path = write("x.yaml", "extends: base.yaml\nname: ${oc.env:SECRET}\n")
    # when
    loaded = load([path])
    # then
    assert loaded.config.name == "hunter2"
    assert "hunter2" not in loaded.yaml()
    assert "name: ${oc.env:SECRET}" in loaded.yaml()


def test_the_yaml_holds_every_key_and_loads_to_the_same_config() -> None:
    loaded = load(
        ["base.yaml", "batch.micro=8", "optimizer.args.betas=[0.9,0.95]", "precision=bfloat16"]
    )
    saved = OmegaConf.create(loaded.yaml())
    assert saved.runtime.timeout_seconds == 1800
    assert load([write("saved.yaml", loaded.yaml())]).config == loaded.config


def test_args_are_plain_dicts_and_lists() -> None:
    args = load(["base.yaml", "optimizer.args.betas=[0.9,0.95]"]).config.optimizer.args
    assert type(args) is dict
    assert type(args["betas"]) is list


def test_the_run_name_is_the_configs_or_follows_from_the_overrides() -> None:
    loaded: Loaded = load(["base.yaml", "seed=1", "batch.micro=16", "log.every_steps=5"])
    assert run_name(loaded) == "base-micro16-seed1"
    assert run_name(load(["base.yaml", "name=mine", "seed=1"])) == "mine"


def test_targets_in_the_current_folder_and_in_my_are_found(folder: Path) -> None:
    (folder / "my" / "tasks").mkdir(parents=True)
    (folder / "my" / "tasks" / "mine_for_a_test.py").write_text("class Mine:\n    pass\n")
    (folder / "my" / "lone_for_a_test.py").write_text("class Lone:\n    pass\n")
    assert (
        load(["base.yaml", "task=lone_for_a_test.Lone"]).config.task.target
        == "lone_for_a_test.Lone"
    )


# Without torch


def run_python(code: str) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_importing_the_room_does_not_import_torch() -> None:
    assert run_python("import train.config; print('torch' in sys.modules)") == "False\n"


def test_plain_problems_are_told_where_torch_cannot_be_imported() -> None:
    printed = run_python(
        "sys.modules['torch'] = None\nfrom train.config import ConfigError, load\n"
        "try: load(['base.yaml', 'lr=1', 'seed=x'])\nexcept ConfigError as error: print(error)"
    )
    assert "command line: lr: got 1" in printed
    assert "command line: seed: got 'x'" in printed


@pytest.mark.parametrize(
    "line", ["name: 010", "wandb: {tags: [1:30]}", "model: {args: {bias: 0x10}}", "010: 3"]
)
def test_what_yaml_reads_otherwise_than_it_is_written_is_refused_with_its_line(line: str) -> None:
    write("odd.yaml", f"extends: base.yaml\n# a comment\n{line}\n")

    assert "odd.yaml:3: " in the_problem("odd.yaml")
    assert "which YAML reads as the number" in the_problem("odd.yaml")
