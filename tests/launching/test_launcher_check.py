"""Every key of accelerate's launcher file and every flag of its launcher, taken or refused before
ranks start.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config import cluster
from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig
from accelerate.commands.launch import launch_command_parser

from tests.launching.cards import cards
from train.launching import choose, launcher_keys
from train.launching.arguments import LaunchRefused, parse
from train.launching.command import build
from train.launching.launcher_check import check
from train.launching.launcher_file import find
from train.launching.launcher_keys import ONLY_FLAGS, ONLY_IN_FILE, REFUSED, ROWS, SWITCHES, Row
from train.launching.machines import find_machines

DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"
OLD_KEYS = {"fp16", "dynamo_backend"}
"""Those that accelerate still converts."""


def options() -> dict[str, bool]:
    """The flags of `accelerate launch`, and whether they stand alone."""
    actions = launch_command_parser()._actions
    return {
        option[2:]: action.nargs == 0
        for action in actions
        for option in action.option_strings
        if option.startswith("--") and "-" not in option[2:]
    }


def test_every_key_and_flag_of_accelerate_has_its_row_and_no_other() -> None:
    fields = {
        field.name
        for kind in (ClusterConfig, SageMakerConfig)
        for field in dataclasses.fields(kind)
    }
    ours = {key for row in ROWS for key in row.keys}

    assert ours == fields | set(options()) | OLD_KEYS
    assert {name for name, alone in options().items() if alone} == SWITCHES
    had = {key for row in ROWS if row.fate != REFUSED for key in row.keys}
    assert had - set(options()) == ONLY_IN_FILE
    in_sections = {key for key in had if key.startswith("fsdp_")} | {"gradient_accumulation_steps"}
    assert had - fields - in_sections - {"use_fsdp"} == ONLY_FLAGS


# What `accelerate config` writes


def answering(answers: dict[str, Any]) -> Callable[..., Any]:
    """In place of its questions: the answer whose key is in the question, else the default, else
    the first choice.
    """

    def answer(question: str, *args: Any, **kwargs: Any) -> Any:
        for words, given in answers.items():
            if words in question:
                return given
        choices = args[0] if args and isinstance(args[0], list) else None
        if "default" in kwargs:
            default = kwargs["default"]
            convert = args[1] if choices and len(args) > 1 else None
            return convert(default) if convert else default
        return choices[0] if choices else 1

    return answer


GPUS = {"type of machine": cluster.DistributedType.MULTI_GPU, "should be used for distributed": 2}
WRITTEN: list[tuple[str, dict[str, Any], set[str]]] = [
    ("one process", {"type of machine": cluster.DistributedType.NO}, set()),
    ("CPU", {"type of machine": cluster.DistributedType.MULTI_CPU, "should be used": 2}, set()),
    ("GPUs", GPUS, set()),
    (
        "machines",
        GPUS | {"How many different machines": 2, "IP address": "10.0.0.1", "is the port": 29501},
        set(),
    ),
    ("bf16", GPUS | {"mixed precision?": "bf16"}, set()),
    (
        "mpirun",
        {"type of machine": cluster.DistributedType.MULTI_CPU, "mpirun?": True},
        {"mpirun_hostfile"},
    ),
    (
        "dynamo",
        GPUS | {"optimize your script": True, "customize the defaults": True},
        {"dynamo_backend", "dynamo_mode"},
    ),
    ("FSDP 2", GPUS | {"FullyShardedDataParallel": True}, set()),
    (
        "FSDP 2 offloaded",
        GPUS | {"FullyShardedDataParallel": True, "offload param": True},
        {"fsdp_offload_params"},
    ),
    (
        "FSDP 2 by size",
        GPUS | {"FullyShardedDataParallel": True, "auto wrap policy": "SIZE_BASED_WRAP"},
        {"fsdp_auto_wrap_policy: SIZE_BASED_WRAP", "fsdp_min_num_params"},
    ),
    (
        "FSDP 1",
        GPUS
        | {
            "FullyShardedDataParallel": True,
            "FSDP version": 1,
            "FSDP activation checkpointing": True,
        },
        {
            "fsdp_version: 1",
            "fsdp_reshard_after_forward: FULL_SHARD",
            "memory.activation_checkpointing",
        },
    ),
    (
        "parallelism",
        GPUS | {"FullyShardedDataParallel": True, "parallelism config?": True},
        {"parallelism_config_tp_size", "parallelism_config_dp_shard_size"},
    ),
    (
        "DeepSpeed",
        GPUS
        | {"use DeepSpeed?": True, "gradient accumulation steps": 4, "use gradient clipping": True},
        {"DEEPSPEED", "zero_stage", "batch.accumulation_steps", "optimizer.max_grad_norm"},
    ),
    (
        "DeepSpeed by its file",
        GPUS | {"use DeepSpeed?": True, "json file": True, "path to the json": "ds.json"},
        {"DEEPSPEED", "deepspeed_config_file"},
    ),
    (
        "Megatron",
        GPUS | {"use Megatron-LM": True},
        {"MEGATRON_LM", "megatron_lm_tp_degree", "optimizer.max_grad_norm"},
    ),
    (
        "fp8",
        GPUS | {"mixed precision?": "fp8", "FP8 backend": "TE"},
        {"mixed_precision: fp8", "fp8_config"},
    ),
    (
        "TPU",
        {
            "type of machine": cluster.DistributedType.XLA,
            "a TPU cluster?": True,
            "name of your TPU": "pod",
        },
        {"distributed_type: XLA", "tpu_name: pod", "tpu_use_cluster"},
    ),
    (
        "XPUs",
        GPUS | {"type of machine": cluster.DistributedType.MULTI_XPU},
        {"distributed_type: MULTI_XPU"},
    ),
]


@pytest.mark.parametrize(
    ("answers", "named"), [row[1:] for row in WRITTEN], ids=[row[0] for row in WRITTEN]
)
def test_what_accelerate_config_writes_is_taken_or_refused_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], named: set[str]
) -> None:
    # Given accelerate's own questionnaire, answered by a user.
    for name in ("_ask_field", "_ask_options"):
        monkeypatch.setattr(cluster, name, answering(answers))
    for name in ("is_deepspeed_available", "is_fp8_available", "is_transformer_engine_available"):
        monkeypatch.setattr(cluster, name, lambda: True)
    path = tmp_path / "mine.yaml"
    cluster.get_cluster_input().to_yaml_file(path)

    # When it is checked, then what cannot be had is named, all of it, and nothing else.
    said = refusal(path)
    assert bool(said) == bool(named), said
    assert all(word in said for word in named), said
    for line in said.splitlines()[1:]:
        assert ". Set: " in line or ". Remove" in line or ". Start" in line, line


def refusal(
    path: Path, *flags: str, precision: str = "bf16", environment: dict[str, str] | None = None
) -> str:
    """Empty where all is taken."""
    try:
        check(find(str(path)), flags, environment or {}, lambda: precision)
    except LaunchRefused as error:
        return str(error)
    return ""


# Each row


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: 'NO'\n")
    return path


def examples() -> list[tuple[Row, str, Any]]:
    found = []
    for row in ROWS:
        value = (
            row.values[0]
            if row.values
            else {"num_machines": 2, "use_cpu": True}.get(row.keys[0], "3")
        )
        found += [(row, key, value) for key in row.keys]
    return found


@pytest.mark.parametrize(("row", "key", "value"), examples(), ids=lambda value: str(value)[:40])
def test_each_row_of_the_table(plain: Path, row: Row, key: str, value: Any) -> None:
    if key in options():
        flags = [f"--{key}"] if key in SWITCHES else [f"--{key}", str(value)]
        said = refusal(
            plain,
            *flags,
            *(["--fsdp_version", "2"] if key == "use_fsdp" else []),
            precision=str(value),
        )
    else:
        values = {
            "distributed_type": "NO",
            key: True if key in launcher_keys.TRUE_OR_FALSE else value,
        }
        plain.write_text(yaml.safe_dump(values))
        said = refusal(plain, precision=str(value))

    assert (row.says in said) == (row.fate == REFUSED), said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gradient_acumulation_steps: 4", "did you mean gradient_accumulation_steps?"),
        ("max_restarts: 3", "is a flag. Run: ./launch.sh ... -- --max_restarts"),
        ("num_machines: two", "num_machines: two: has to be a whole number"),
        ("use_cpu: 'yes'", "has to be true or false"),
        (
            "mixed_precision: fp16",
            "mixed_precision: fp16: the config says precision=bf16. Set: precision=fp16",
        ),
    ],
)
def test_what_is_wrong_in_a_file(plain: Path, text: str, named: str) -> None:
    plain.write_text(f"distributed_type: 'NO'\n{text}\n")
    assert named in refusal(plain)


def test_all_is_told_at_once_from_file_flags_and_variables(plain: Path) -> None:
    plain.write_text("fsdp_config: {fsdp_version: 2, fsdp_new: 1}\n7: 8\n")
    flags = [
        "--zero-stage=2",
        "--max_restarts",
        "3",
        "--no_such",
        "4",
        "x.py",
        "--compute_environment",
        "-m",
    ]
    said = refusal(
        plain,
        *flags,
        environment={"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_DEEPSPEED": "false"},
    )

    for named in (
        "distributed_type is missing",
        "fsdp_config.fsdp_new: 1: accelerate has no",
        "7: 8",
        "--zero-stage=2",
    ):
        assert named in said
    for named in (
        "--no_such 4: accelerate has no",
        "x.py",
        "--compute_environment: is no",
        "-m: launch.sh",
    ):
        assert named in said
    assert "ACCELERATE_USE_FSDP" not in said
    assert "max_restarts" not in said
    assert "DEEPSPEED=false" not in said


# What is taken


def test_fsdp_without_a_version_is_that_of_accelerate(plain: Path) -> None:
    for flags, environment in ((["--use_fsdp"], {}), ([], {"ACCELERATE_USE_FSDP": "true"})):
        assert "without fsdp_version accelerate means FSDP 1" in refusal(
            plain, *flags, environment=environment
        )
        assert not refusal(plain, *flags, environment={**environment, "FSDP_VERSION": "2"})
    assert "FSDP_VERSION=1: FSDP 1 is not supported" in refusal(
        plain, environment={"FSDP_VERSION": "1"}
    )


def test_fsdp_2_reaches_the_ranks_by_variables(plain: Path) -> None:
    plain.write_text(
        "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false, "
        "fsdp_transformer_layer_cls_to_wrap: 'A,B'}\n"
    )

    words = command(plain, "--", "--num_processes", "2", "--fsdp_version=2", gpus=2)

    assert {
        "ACCELERATE_USE_FSDP=true",
        "FSDP_VERSION=2",
        "FSDP_RESHARD_AFTER_FORWARD=False",
    } <= set(words)
    assert "FSDP_TRANSFORMER_CLS_TO_WRAP=A,B" in words
    assert not any("fsdp" in word for word in words if word.startswith("--"))
    assert "--multi_gpu" in words


def command(path: Path, *words: str, gpus: int, **environment: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            choose,
            "ask_torch",
            lambda named: cards(len(named.split(",")) if named and gpus else gpus),
        )
        arguments = parse(["my.yaml", *words])
        file = find(str(path))
        check(file, arguments.flags, environment, lambda: "bf16")
        arguments = find_machines(arguments, file, environment).among(arguments)
        made = build(arguments, file, choose.choose(arguments, file, environment), 120)
    return [*(f"{name}={value}" for name, value in made.variables.items()), *made.words]


def test_accelerate_reads_our_file_alone_and_gets_what_was_taken_as_flags(plain: Path) -> None:
    # Given a file whose bare `no` stops accelerate, and of which accelerate 1.15 drops the last two
    # keys.
    plain.write_text(
        "distributed_type: MULTI_GPU\nmixed_precision: no\nnum_machines: 2\nmachine_rank: "
        "1\nmain_process_ip: head\nmain_process_port: 29501\nnum_processes: 8\nrdzv_backend: "
        "c10d\nenable_cpu_affinity: true\n"
    )
    words = " ".join(command(plain, gpus=4))

    assert "mine.yaml" not in words
    for flag in (
        "num_machines 2",
        "machine_rank 1",
        "main_process_ip head",
        "main_process_port 29501",
    ):
        assert f"--{flag}" in words
    assert "--rdzv_backend c10d" in words
    assert "--enable_cpu_affinity" in words
    assert "--num_processes 8" in words
    assert "--multi_gpu" in words


@pytest.mark.parametrize("where", ["file", "flag"])
def test_gpus_that_are_named_are_those_that_the_ranks_see(plain: Path, where: str) -> None:
    if where == "file":
        plain.write_text("distributed_type: 'NO'\ngpu_ids: 1,3\n")
    words = command(plain, *(["--", "--gpu_ids", "1,3"] if where == "flag" else []), gpus=4)

    assert {"CUDA_VISIBLE_DEVICES=1,3", "ISOBATCH_WORLD_SIZE=2"} <= set(words)
    assert "--gpu_ids" not in words
    with pytest.raises(LaunchRefused, match="2 GPUs of gpu_ids 1,3"):
        command(plain, *(["--", "--gpu_ids=1,3"] if where == "flag" else []), gpus=4, NPROC="3")


def test_one_gpu_that_is_named_needs_no_launcher(plain: Path) -> None:
    plain.write_text("distributed_type: 'NO'\ngpu_ids: 3\n")
    words = command(plain, gpus=4)
    assert "CUDA_VISIBLE_DEVICES=3" in words
    assert "accelerate.commands.launch" not in words


def test_no_number_of_processes_is_all_gpus(plain: Path) -> None:
    plain.write_text("distributed_type: MULTI_GPU\nnum_processes: -1\n")
    assert "ISOBATCH_WORLD_SIZE=4" in command(plain, gpus=4)


@pytest.mark.parametrize(
    "text", ["distributed_type: MULTI_GPU", "distributed_type: 'NO'\ngpu_ids: '0'"]
)
def test_a_file_about_gpus_does_not_train_on_the_cpu_unasked(plain: Path, text: str) -> None:
    plain.write_text(f"{text}\nnum_processes: 1\n")
    with pytest.raises(LaunchRefused, match="no GPU is visible"):
        command(plain, gpus=0)
    assert "ACCELERATE_USE_CPU=true" in command(plain, gpus=0, ACCELERATE_USE_CPU="true")


def test_what_has_no_effect_is_said(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain.write_text(
        "distributed_type: 'NO'\ndebug: true\nmain_process_port: 29501\nsame_network: true\n"
        "main_training_function: main\ncompute_environment: LOCAL_MACHINE\n"
    )
    assert not refusal(plain)
    said = capsys.readouterr().err
    assert "debug: True has no effect" in said
    assert "main_process_port: 29501 has no effect on one machine" in said
    assert len(said.splitlines()) == 2


# The table of the docs


def table() -> str:
    return "\n".join(
        ["| key | fate | what becomes of it |", "|---|---|---|", *(row.shown() for row in ROWS)]
    )


def test_the_docs_hold_the_table() -> None:
    assert table() in DOCS.read_text(encoding="utf-8"), f"docs/cluster.md should hold:\n{table()}"
