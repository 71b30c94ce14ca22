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
INTEGERS = ("randint", "randint_like", "random_")

# Of the Mersenne Twister's state: the next 16 numbers. Those after them are random again, so that
# code that draws until a number suits it does not loop for ever.
FORCED_WORDS = 32

LOWEST_WORD = 0
HIGHEST_WORD = 0x12DD9BB3
"""Words of the Mersenne Twister's state that are tempered to 32 bits of 0, and to 32 bits of 1."""


class _ForcedTorchDraws(TorchDispatchMode):
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
        # Drawn first, then overwritten: shape, type and device are then those of torch, and the
        # generators move as ever.
        drawn = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in UNIFORM:
            self._force_uniform(drawn, name, args)
        elif name in COINS:
            drawn.copy_(self._forced_coins(args))
        elif name in INTEGERS:
            self._force_integers(drawn, func, args)
        elif name == "native_dropout":
            self._force_dropout(drawn, args)
        return drawn

    def _force_uniform(self, drawn: Tensor, name: str, args: tuple[Any, ...]) -> None:
        """`uniform_(x, low, high)`, or `rand(...)`, which draws from [0, 1)."""
        low = 0.0
        high = 1.0
        if name == "uniform_":
            # Only those that are not the default arrive.
            if len(args) > 1:
                low = args[1]
            if len(args) > 2:
                high = args[2]
        # A uniform draw never gives its upper end: code may divide by 1 - u.
        largest_below_high = high - (high - low) * torch.finfo(drawn.dtype).eps
        drawn.fill_(largest_below_high if self.high else low)

    def _force_integers(self, drawn: Tensor, func: Any, args: tuple[Any, ...]) -> None:
        """`randint(low, high, ...)`, `random_(x, low, high)` and the like, or without `low`."""
        if not drawn.numel():
            return
        if self.high:
            drawn.fill_(drawn.max())
            return
        low = 0
        if func._overloadname.startswith(("low", "from")):
            low = args[0] if func.overloadpacket.__name__ == "randint" else args[1]
        drawn.fill_(low)

    def _forced_coins(self, args: tuple[Any, ...]) -> Tensor:
        """`bernoulli(odds)`, `bernoulli(x, odds)` or `bernoulli_(x, odds)`."""
        odds = args[1] if len(args) > 1 else args[0]
        odds = torch.as_tensor(odds, dtype=torch.float64)
        # Odds of 0 and 1 are no choice: both roundings leave them.
        return odds.ceil() if self.high else odds.floor()

    def _force_dropout(self, drawn: tuple[Tensor, Tensor], args: tuple[Any, ...]) -> None:
        """`native_dropout(x, p, train)`, which gives (output, mask)."""
        inputs = args[0]
        probability = args[1]
        if not 0.0 < float(probability) < 1.0:
            return
        output, mask = drawn
        mask.fill_(self.high)
        if self.high:
            # All kept, and scaled as dropout scales what it keeps.
            output.copy_(inputs / (1 - probability))
        else:
            output.zero_()


@contextmanager
def forced_draws(high: bool) -> Iterator[None]:
    """Inside, the next draws of torch, NumPy and Python are the highest, or the lowest, there are.

    Leaves the generators moved.
    """
    word = HIGHEST_WORD if high else LOWEST_WORD
    # A number of 53 bits takes two words, so FORCED_WORDS are 16 of them.
    random_words = random.getstate()[1][FORCED_WORDS:-1]
    # The last number of Python's state is the position in its words: 0, at the forced ones.
    random.setstate((3, (word,) * FORCED_WORDS + random_words + (0,), None))
    keys = np.random.get_state(legacy=False)["state"]["key"].copy()
    keys[:FORCED_WORDS] = word
    # Position 0 again, and no second normal number kept from the last draw.
    np.random.set_state(("MT19937", keys, 0, 0, 0.0))
    with _ForcedTorchDraws(high):
        yield
