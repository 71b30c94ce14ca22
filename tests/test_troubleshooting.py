"""docs/troubleshooting.md: each entry is provoked on the CPU, and its message says what the page
quotes.

An entry is a heading, which is what one searches for, and a line `Isobatch says: ...`; what stands
in backticks there is a part of the message.
"""

import dataclasses
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import train
from tests.conftest import run_ranks
from tests.distributed.test_unused_parameters import trained
from tests.helpers import argv
from tests.launching.cards import A100, cards
from train.accumulate import compute_gradient
from train.batch.window import Batch, Window
from train.config import load
from train.data.workers import check_shared_memory
from train.distributed.watchdog import diagnosis
from train.errors import UserError
from train.launching.gpus import find_trouble, refusal
from train.launching.machines import Machines
from train.launching.rendezvous import meet
from train.launching.torch_builds import Machine
from train.main import main
from train.report.claim import cannot_write
from train.step import ComputeGradient, Learner
from train.tasks.classification import Classification

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
HERE = "tests.test_troubleshooting"
CUDA_SAYS = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB"


@dataclass(frozen=True)
class Scene:
    """Where a message is provoked."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *overrides: str, compute: ComputeGradient = compute_gradient) -> tuple[int, str]:
        """(exit code, stdout and stderr) of a run on tiny data, in this process."""
        code = main(argv(self.folder, *overrides), "accumulate", compute)
        printed = self.capsys.readouterr()
        return code, printed.out + printed.err

    def failed_run(self, *overrides: str, compute: ComputeGradient = compute_gradient) -> str:
        code, message = self.run(*overrides, compute=compute)
        assert code != 0
        return message


Provoke = Callable[[Scene], str]


# Memory


def out_of_memory(scene: Scene) -> str:
    def compute(learner: Learner, window: Window) -> Tensor:
        if window.k == 2:
            raise torch.OutOfMemoryError(CUDA_SAYS)
        return compute_gradient(learner, window)

    return scene.failed_run("batch.on_oom=stop", compute=compute)


def shared_memory(scene: Scene) -> str:
    scene.monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    with pytest.raises(UserError) as raised:
        check_shared_memory(2, 13 * 2**20)
    return str(raised.value)


def disk_full(scene: Scene) -> str:
    return str(cannot_write(scene.folder / "run", OSError(28, "No space left on device")))


# Wrong numbers


def nan_stop(scene: Scene) -> str:
    return scene.failed_run("optimizer.lr=1e200", "on_nonfinite=stop", "duration.epochs=4")


def nan_skip(scene: Scene) -> str:
    return scene.failed_run("optimizer.lr=1e200", "max_nonfinite_steps=2", "duration.epochs=4")


def other_curve(scene: Scene) -> str:
    return scene.failed_run("model.args.dropout=0.5", "batch.exact=required")


class MeanLoss(Classification):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return super().loss_sum(model, batch) / len(batch["labels"])


def mean_loss(scene: Scene) -> str:
    return scene.failed_run(f"task={HERE}.MeanLoss")


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


def lone_sample(scene: Scene) -> str:
    tail_of_one = "data.args={size: 33}"
    return scene.failed_run(f"model={{target: {HERE}.Normalized}}", tail_of_one)


# Config and data


def config_error(scene: Scene, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        load(argv(scene.folder, *overrides))
    return str(raised.value)


def unknown_key(scene: Scene) -> str:
    return config_error(scene, "gradient_accumulation_steps=4")


def three_of_three(scene: Scene) -> str:
    return scene.failed_run("batch={effective: 37, micro: 4, accumulation_steps: 3}")


def missing_column(scene: Scene) -> str:
    table = scene.folder / "own.csv"
    table.write_text("height,width,kind\n1.5,2.0,0\n2.5,1.0,1\n3.5,1.0,2\n" * 8)
    return scene.failed_run(f"data={{source: {table}}}")


def too_few_outputs(scene: Scene) -> str:
    return scene.failed_run("model.args.outputs=2")


def float16_on_cpu(scene: Scene) -> str:
    AcceleratorState._reset_state()  # it knows one precision per process
    try:
        return scene.failed_run("precision=fp16")
    finally:
        AcceleratorState._reset_state()


# Ranks and launchers


def hang(scene: Scene) -> str:
    waiting = '{"step": 7, "location": "ranks.py:90 wait"}'
    later = '{"step": 7, "location": "ranks.py:91 wait"}'
    stuck = '{"step": 6, "location": "loader.py:50 read"}'
    return diagnosis([[waiting, stuck], [later, stuck]], 1800, scene.folder)


def port_in_use(scene: Scene) -> str:
    with socket.create_server(("", 0)) as other:
        machines = Machines(number=2, head="localhost", port=other.getsockname()[1], job="7")
        with pytest.raises(UserError) as raised, meet(machines, 1):
            pass
    return str(raised.value)


def unused_parameters(scene: Scene) -> str:
    arguments = argv(
        scene.folder,
        "model={target: tests.distributed.test_unused_parameters.Loud}",
        "data={source: tests.helpers.tiny, args: {size: 48, loud: [28, 32]}}",
        "batch.micro=all",
    )
    [(code, message)], _ = run_ranks(2, trained, [arguments])
    assert code == 2
    return str(message)


def one_process(scene: Scene) -> str:
    scene.monkeypatch.setenv("ISOBATCH_WORLD_SIZE", "2")
    return scene.failed_run()


def other_engine(scene: Scene) -> str:
    scene.monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    return scene.failed_run()


def old_driver(scene: Scene) -> str:
    machine = Machine(cards=(A100,), capabilities=((8, 0),), driver="550.54.14")
    seen = dataclasses.replace(cards(0), error="no CUDA-capable device is detected")
    trouble = find_trouble(seen, None, lambda: machine)
    assert trouble
    return refusal(trouble)


# Starting again


def other_mathematics(scene: Scene) -> str:
    assert scene.run("checkpoint.resume=auto", "duration.epochs=1")[0] == 0
    return scene.failed_run("checkpoint.resume=auto", "duration.epochs=1", "optimizer.lr=0.25")


def already_finished(scene: Scene) -> str:
    assert scene.run("checkpoint.resume=auto")[0] == 0
    code, message = scene.run("checkpoint.resume=auto")
    assert code == 0
    return message


def stopped(scene: Scene) -> str:
    code, message = scene.run("duration.epochs=40", "duration.hours=1e-9")
    assert code == 75
    return message


def two_jobs(scene: Scene) -> str:
    messages = []

    def compute(learner: Learner, window: Window) -> Tensor:
        if window.k == 1:
            again = [*argv(scene.folder), "checkpoint.resume=auto"]
            assert main(again, "accumulate", compute_gradient) != 0
            messages.append(scene.capsys.readouterr().err)
        return compute_gradient(learner, window)

    assert main(argv(scene.folder), "accumulate", compute) == 0
    return messages[0]


def damaged(scene: Scene) -> str:
    assert scene.run("checkpoint.resume=auto")[0] == 0
    for manifest in (scene.folder / "run" / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    return scene.failed_run("checkpoint.resume=auto", "duration.epochs=2")


def foreign_folder(scene: Scene) -> str:
    assert scene.run()[0] == 0
    config = scene.folder / "run" / "config.yaml"
    text, changed = re.subn(r"target: mlp", "target: os.system", config.read_text())
    assert changed
    config.write_text(text)
    with pytest.raises(UserError) as raised:
        train.load(scene.folder / "run")
    return str(raised.value)


# W&B


def not_logged_in(scene: Scene) -> str:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        scene.monkeypatch.delenv(name, raising=False)
    scene.monkeypatch.setenv("NETRC", str(scene.folder / "none"))
    return scene.failed_run("wandb.mode=online")


def no_network(scene: Scene) -> str:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("Network is unreachable")

    scene.monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    scene.monkeypatch.setattr("wandb.init", unreachable)
    code, message = scene.run("wandb.mode=online", "duration={steps: 1}")
    assert code == 0
    return message


PROVOKE: dict[str, Provoke] = {
    "CUDA out of memory": out_of_memory,
    "Bus error, or DataLoader worker is killed by signal": shared_memory,
    "No space left on device": disk_full,
    "Loss is nan": nan_skip,
    "Loss is nan, and the run stopped at once": nan_stop,
    "The loss curve changed with the number of GPUs": other_curve,
    "The loss is too small by the batch size": mean_loss,
    "Expected more than 1 value per channel when training": lone_sample,
    "Unknown key, or gradient_accumulation_steps has no effect": unknown_key,
    "Batch sizes do not multiply": three_of_three,
    "KeyError: a column is not found": missing_column,
    "Target is out of bounds, or device-side assert triggered": too_few_outputs,
    "fp16 on a CPU": float16_on_cpu,
    "NCCL or gloo timeout, or training hangs": hang,
    "Address already in use": port_in_use,
    "Expected to have finished reduction in the prior iteration": unused_parameters,
    "accelerate launch starts only one process": one_process,
    "DeepSpeed, FSDP 1 or Megatron-LM in the launcher file": other_engine,
    "No CUDA-capable device is detected, or the driver is too old": old_driver,
    "Resume starts from step 0, or is refused": other_mathematics,
    "The run ends at once and trains nothing": already_finished,
    "Exit code 75": stopped,
    "Two jobs, one run folder": two_jobs,
    "The checkpoint is damaged": damaged,
    "train.load refuses a run folder": foreign_folder,
    "wandb: not logged in": not_logged_in,
    "wandb: network error": no_network,
}


def entries() -> dict[str, list[str]]:
    """{heading: the parts of the message that the page quotes}"""
    found = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        line = re.search(r"^Isobatch says: (.+?)\n\n", body, re.MULTILINE | re.DOTALL)
        found[heading] = re.findall(r"`([^`]+)`", line[1].replace("\n", " ")) if line else []
    return found


def test_each_entry_has_its_test() -> None:
    assert list(entries()) == list(PROVOKE)


@pytest.mark.parametrize("heading", PROVOKE)
def test_the_message_says_what_the_page_quotes(
    heading: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quoted = entries()[heading]

    message = PROVOKE[heading](Scene(tmp_path, monkeypatch, capsys))

    assert quoted
    assert [part for part in quoted if part not in message] == [], message
