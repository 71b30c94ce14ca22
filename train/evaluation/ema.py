"""A moving average of the weights, evaluated and saved beside them.

It changes nothing about the training.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from train.batch.window import Window
from train.checkpoint.shards import rows_of_rank
from train.distributed.sharded import local
from train.errors import UserError, ends_in_a_sentence
from train.evaluation.evaluator import Evaluate
from train.parts import Part, unchanged
from train.step import Learner

PREFIX = "ema/"  # of its metrics: eval/ema/loss


class EmaError(UserError):
    """No average can be kept of this model, or not the one that a checkpoint holds."""


def part(learner: Learner, decays: Sequence[tuple[int, float]]) -> Part:
    """`decays`: (samples seen, ema.decay from there on), the first from 0 on; none: no average."""
    if not decays:
        return Part(name="ema")
    _, first_decay = decays[0]
    ema = Ema(learner, first_decay)
    return Part(
        name="ema",
        windows=partial(ema.with_decays, decays) if len(decays) > 1 else unchanged,
        evaluation=ema.around,
        state=ema,
        exports={"ema": ema.module},
    )


class Ema:
    """After each update the average moves by 1 - decay of the way to the weights.

    The first update sets it. A step that was skipped, since its gradient was not finite, does
    neither: whether one was is known on the device alone, and the host does not ask. Averages are
    float32 or wider: in bf16 a step of 0.001 of the way is rounded off. Buffers are the model's.

    Not torch's AveragedModel (2.13): its first call sets the average even where the step was
    skipped, and it counts on the CPU, for which a GPU waits at each step.
    """

    def __init__(self, learner: Learner, decay: float) -> None:
        make_second = learner.parallel.second
        self.module = make_second() if make_second else _copied(learner.module)
        """The model with the averaged weights, up to date after an evaluation or a save."""
        self._source = learner.module
        self._optimizer = learner.optimizer
        self._weights: dict[str, nn.Parameter] = {}
        self._averages: dict[str, Tensor] = {}
        for name, p in learner.module.named_parameters():
            if _is_averaged(p):
                self._weights[name] = p
        # The second model has parameters of its own, also a part of each under FSDP2: names join
        # them.
        for name, p in self.module.named_parameters():
            if _is_averaged(p):
                self._averages[name] = _wide(p.detach())
        dtype = torch.promote_types(learner.dtype, torch.float32)
        self._updates = torch.zeros((), dtype=torch.int64, device=learner.device)
        self._step = torch.tensor(1 - decay, dtype=dtype, device=learner.device)
        # A hook, not a part around the gradient: it runs after the update, and not at all in a step
        # that is left out on the host.
        learner.optimizer.register_step_post_hook(self._update)

    @torch.no_grad()
    def _update(self, *_: object) -> None:
        """Called where the optimizer made a step, or skipped it by a flag on the device."""
        skipped = getattr(self._optimizer, "found_inf", None)
        # Of the way to the weights; all of it in the first update.
        # Not torch.where: it makes a tensor of the 1.0 on the host, for whose copy a GPU waits.
        step = self._step.masked_fill(self._updates == 0, 1.0)
        if skipped is None:
            self._updates += 1
        else:
            # 0 where the step was skipped: by 0 of the way no average moves, and the host need not
            # know.
            applied = 1 - skipped
            step = step * applied
            self._updates += applied.long()
        for name, average in self._averages.items():
            weight = local(self._weights[name]).to(average.dtype)
            local(average).lerp_(weight, step.to(average.dtype))

    def with_decays(
        self, decays: Sequence[tuple[int, float]], windows: Iterable[Window]
    ) -> Iterator[Window]:
        """The same windows, before each of which the decay is set to that of its stage."""
        starts = [start for start, _ in decays]
        for window in windows:
            # By the samples that the run has seen before the window, as all else of a batch
            # schedule.
            _, decay = decays[bisect_right(starts, window.seen) - 1]
            self._step.fill_(1 - decay)
            yield window

    @torch.no_grad()
    def _refresh(self) -> None:
        """Bring the module to the averages, and all that is not averaged to the model."""
        # Only here, and not at each update: the module may be narrower than its averages, and
        # nobody reads it between two evaluations or saves.
        parameters = dict(self._source.named_parameters())
        for name, parameter in self.module.named_parameters():
            local(parameter).copy_(local(self._averages.get(name, parameters[name])))
        buffers = dict(self._source.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])

    def around(self, evaluate: Evaluate) -> Evaluate:
        """The same evaluation, and after it that of the average."""

        def evaluate_both(module: nn.Module) -> dict[str, float]:
            plain = evaluate(module)
            self._refresh()
            averaged = evaluate(self.module)
            # Under names of their own: eval/ema/loss stands beside eval/loss.
            for name, value in averaged.items():
                # the number of samples is in the row already
                if name.rpartition("/")[2] != "samples":
                    plain[PREFIX + name] = value
            return plain

        return evaluate_both

    def state_dict(self) -> dict[str, Any]:
        """Under the names that torch's AveragedModel gives them."""
        self._refresh()
        # Checkpoints from before this class hold AveragedModel's names: they can still be read.
        averages = {f"module.{name}": average for name, average in self._averages.items()}
        return {"n_averaged": self._updates, **averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises EmaError for the average of another model."""
        for name, average in self._averages.items():
            stored = state.get(f"module.{name}")
            if stored is None or tuple(stored.shape) != tuple(average.shape):
                raise EmaError(
                    f"the checkpoint holds no average of {name} of this shape. Set: "
                    "ema.decay=null, or model.args as they were there"
                )
            local(average).copy_(rows_of_rank(stored, average))
        self._updates.copy_(state["n_averaged"])
        self._refresh()


def _is_averaged(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _wide(parameter: Tensor) -> Tensor:
    """The average of a parameter: the module's own memory where that is wide enough."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def _copied(module: nn.Module) -> nn.Module:
    """A copy of the model. Raises EmaError where it holds something that cannot be copied."""
    what = (
        "ema.decay keeps a second model, and this one cannot be copied (copy.deepcopy). Set: "
        "ema.decay=null"
    )
    with ends_in_a_sentence(EmaError, what), torch.no_grad(), _CopiesOfResults():
        return deepcopy(module)


class _CopiesOfResults(TorchFunctionMode):
    """deepcopy also takes tensors that were computed, which torch refuses to copy with their
    history.

    Those are what a module keeps of its last forward: the weight of torch.nn.utils.weight_norm and
    spectral_norm, which their hooks compute anew, attention maps, caches.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            # Into the memo, as deepcopy does by itself: a tensor that is held in two places stays
            # one.
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return function(*args, **(kwargs or {}))
