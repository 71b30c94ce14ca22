"""Rare random choices made certain: does a draw that changed nothing so far change anything at all?

A block that is skipped with p = 0.02 is skipped in one trial of fifty. So the draws are forced:
uniform numbers to the ends of their range, coins to one side, whatever their odds.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

UNIFORM = ("rand", "rand_like", "uniform", "uniform_")
COINS = ("bernoulli", "bernoulli_")
WHOLE = ("randint", "randint_like", "random_")

FORCED_WORDS = 32
"""Of the Mersenne Twister: the next 16 numbers. Those after them are random again, so that no loop
waits for ever.
"""

WORDS = {False: 0, True: 0x12DD9BB3}
"""The words of the Mersenne Twister's state that come out as all zeros, and as all ones."""


class _Forced(TorchDispatchMode):
    """Inside, torch's random choices come out on one side: low or high."""

    def __init__(self, high: bool) -> None:
        super().__init__()
        self.high = high

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        drawn = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in UNIFORM:
            low, high = args[1:3] if name == "uniform_" and len(args) > 2 else (0.0, 1.0)
            below = high - (high - low) * torch.finfo(drawn.dtype).eps
            drawn.fill_(below if self.high else low)
        elif name in COINS:
            drawn.copy_(self._side(args))
        elif name in WHOLE:
            drawn.fill_(drawn.max() if self.high else 0)
        elif name == "native_dropout" and 0.0 < float(args[1]) < 1.0:
            output, mask = drawn
            mask.fill_(self.high)
            output.copy_(args[0] / (1 - args[1]) if self.high else torch.zeros_like(output))
        return drawn

    def _side(self, args: tuple[Any, ...]) -> Tensor:
        """Of coins: `bernoulli(odds)`, `bernoulli(x, odds)` or `bernoulli_(x, odds)`; odds of 0 and
        1 are no choice.
        """
        odds = args[1] if len(args) > 1 else args[0]
        odds = torch.as_tensor(odds, dtype=torch.float64)
        return odds.ceil() if self.high else odds.floor()


@contextmanager
def forced_draws(high: bool) -> Iterator[None]:
    """The next draws of torch, NumPy and Python are the highest, or the lowest, that there are.
    Leaves the generators moved.
    """
    word = WORDS[high]
    words = random.getstate()[1][FORCED_WORDS:-1]
    random.setstate((3, (word,) * FORCED_WORDS + words + (0,), None))
    keys = np.random.get_state(legacy=False)["state"]["key"].copy()
    keys[:FORCED_WORDS] = word
    np.random.set_state(("MT19937", keys, 0, 0, 0.0))
    with _Forced(high):
        yield
