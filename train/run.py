"""build(config) -> Run: all that a loop needs. The one place where the rooms below are joined."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs
from safetensors.torch import save_model
from torch import Tensor, nn

from train import names
from train.batch import PlanError, key_of
from train.config import Config, Loaded, resolve, run_name
from train.data import DataError, Sets, Windows, open_sets
from train.evaluate import Evaluation, floating_buffers
from train.optimizer import can_skip_on_device, make_optimizer, scaled_numbers
from train.planning import plan_batch, plan_rate
from train.ranks import Ranks, asked_world_size, check_world_size
from train.report import FINISHED, Interval, Reporter, RunPlan, end_process
from train.schedule import Scaled
from train.signals import Stop
from train.step import Learner, NonFiniteGradient
from train.tasks import Task
from train.window import Window

__all__ = ["DataError", "PlanError", "Run", "build", "show_plan"]

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.float32,
    "fp64": torch.float64,
}  # of the parameters; bf16 is autocast


@dataclass(frozen=True)
class Run:
    """What a loop needs, and nothing else."""

    config: Config
    plan: RunPlan
    learner: Learner
    windows: Windows
    ranks: Ranks
    stop: Stop
    report: Reporter
    evaluation: Evaluation | None

    def begin(self) -> None:
        if self.config.evaluate.at_start:
            self.evaluate()

    def after_step(self, window: Window, loss: Tensor | None, norm: Tensor | None) -> None:
        """Count the step; evaluate and log where that is due, and after the last step."""
        progress, every = self.report.progress, self.config.evaluate
        progress.advance(window, self.plan.batch.dataset_size)
        last = window.k == self.plan.total_steps
        if last or Interval(every.every_steps, every.every_samples).due(progress, window):
            self.evaluate()
        if last or Interval(self.config.log.every_steps).due(progress, window):
            self.log(window, loss, norm)

    def evaluate(self) -> None:
        if self.evaluation is None:
            return
        if self.learner.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()  # training that is still under way must not count as evaluation
        with self.report.clock.paused():
            self.report.eval_row(self.evaluation())

    def log(self, window: Window, loss: Tensor | None, norm: Tensor | None) -> None:
        """Here the host waits for the device: once per row, not once per step."""
        learner = self.learner
        numbers = {
            names.LEARNING_RATE: self.plan.rate.at(window.k),
            names.SKIPPED_STEPS: learner.skipped_steps.item(),
        }
        if loss is not None and norm is not None:
            numbers[names.LOSS] = self.ranks.sum([loss.item()])[0]
            numbers[names.GRAD_NORM] = norm.item()
        self.report.train_row(numbers, window)
        in_a_row, limit = learner.skipped_in_a_row.item(), self.config.max_nonfinite_steps
        if in_a_row >= limit:
            raise NonFiniteGradient(
                f"step {window.k}: the gradient was not finite in the last {in_a_row} steps (max_nonfinite_steps={limit}). "
                f"Try a smaller optimizer.lr, a warm-up, optimizer.max_grad_norm=1.0; precision=fp32 tells if bf16 is to blame"
            )

    def save_final(self) -> None:
        self.ranks.copy_from_main(floating_buffers(self.learner.module))
        if self.report.folder:
            path = self.report.folder.path / "final" / "model.safetensors"
            path.parent.mkdir()
            save_model(self.learner.module, str(path))
        self.ranks.barrier()

    def close(self, reason: str, code: int) -> int:
        """Tell the end to people and to the launcher; returns the process's exit code."""
        self.report.end(reason, code)
        return end_process(
            reason, code, self.report.progress.step, is_main=self.ranks.is_main, complain=code != FINISHED
        )


def build(loaded: Loaded, loop: str) -> Run:
    """All parts of a run; the data is read and the plan made before a device is touched.

    Raises ValueError (PlanError) where config, data and ranks do not fit together, RuntimeError where the ranks that
    met are not those that were asked for.
    """
    config = loaded.config
    task: Task = resolve(config.task.target, "train.tasks")(**config.task.args)
    sets = open_sets(config.data, task.columns)
    plan, numbers = make_plan(loaded, loop, sets)
    accelerator = _accelerator(config)
    check_world_size(accelerator.num_processes)
    ranks = Ranks(accelerator.process_index, accelerator.num_processes, config.runtime.timeout_seconds)
    learner = _learner(config, task, accelerator, numbers)
    stop = Stop()
    stop.listen()
    windows = Windows(
        rows=sets.train,
        plan=plan.batch,
        seed=config.seed,
        ranks=ranks,
        loss_weight=task.loss_weight,
        stop_requested=stop.requested,
        pin_memory=accelerator.device.type == "cuda",
        last=plan.total_steps,
    )
    evaluation = Evaluation(sets.evaluation, learner, ranks, plan.batch.micro) if sets.evaluation else None
    report = Reporter(plan, config.output_dir, loaded.yaml(), ranks.is_main)
    return Run(config, plan, learner, windows, ranks, stop, report, evaluation)


def show_plan(loaded: Loaded, loop: str) -> None:
    """The plan, on the screen, for the ranks that launch.sh or the launcher would start; no device is touched."""
    sets = open_sets(loaded.config.data, resolve(loaded.config.task.target, "train.tasks").columns)
    print(*make_plan(loaded, loop, sets)[0].lines(), sep="\n")


def make_plan(loaded: Loaded, loop: str, sets: Sets) -> tuple[RunPlan, Scaled]:
    """The plan for the ranks that were asked for, and the optimizer's numbers in it."""
    config = loaded.config
    batch = plan_batch(config, loop, asked_world_size(), len(sets.train))
    numbers = scaled_numbers(config.optimizer, batch.effective)
    rate = plan_rate(config, batch, numbers.lr)
    held_out = len(sets.evaluation) if sets.evaluation else 0
    plan = RunPlan(run_name(loaded), loop, config.precision, batch, rate, numbers.arithmetic, held_out)
    return plan, numbers


def _accelerator(config: Config) -> Accelerator:
    torch.set_float32_matmul_precision("high" if config.runtime.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.runtime.tf32
    if config.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        # A plugin of 1: ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment would divide every backward.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            # Bucket views save one copy of the gradients. Buffers are brought together before an evaluation or a save,
            # not in every forward, where that would be a second collective per step.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.runtime.timeout_seconds)),
        ],
    )


def _learner(config: Config, task: Task, accelerator: Accelerator, numbers: Scaled) -> Learner:
    torch.manual_seed(config.seed)  # the same weights on every rank, drawn in float32 whatever the precision
    module: nn.Module = resolve(config.model.target, "train.models")(**config.model.args)
    module.to(DTYPES[config.precision]).train()
    model = accelerator.prepare(module)
    torch.manual_seed(key_of(config.seed, 1 + accelerator.process_index) >> 1)  # from here on each rank draws its own
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(config.optimizer, numbers, parameters)
    return Learner(
        accelerator=accelerator,
        model=model,
        module=module,
        parameters=parameters,
        dtype=DTYPES[config.precision],
        task=task,
        optimizer=optimizer,
        skips_on_device=can_skip_on_device(optimizer),
        max_grad_norm=config.optimizer.max_grad_norm,
        stop_at_nonfinite=config.on_nonfinite == "stop",
        skipped_steps=torch.zeros((), dtype=torch.int64, device=accelerator.device),
        skipped_in_a_row=torch.zeros((), dtype=torch.int64, device=accelerator.device),
    )
