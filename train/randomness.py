"""The random number generators of a process: Python's, NumPy's, torch's on the CPU and on the
device.

Each random number is a function of the place where it is drawn, never of what was drawn before:
whoever lets the user's code draw sets all four first, from the seed and the place. So no
evaluation, row, save or resume can change a draw of the training, and a checkpoint holds no
generator.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from train.batch import key_of

T = TypeVar("T")

DATA_SEED = 0
"""What data is made from, whatever the run's seed: held-out samples are the same for every seed."""

# stands behind the seed in the key of a step, so that none of its draws are those of a sample
_STEP = 1
_ODD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


@dataclass(frozen=True)
class States:
    """Where all generators stand."""

    python: Any
    numpy: Any
    torch_cpu: torch.Tensor
    torch_device: Any  # a tensor; None: there is no other device

    def moved_since(self, earlier: "States") -> list[str]:
        """The generators that something was drawn from in between, by name."""
        # A generator that is first used in between has no state from before, so nothing can be
        # said.
        has_device = self.torch_device is not None and earlier.torch_device is not None
        same = {
            "Python's random": self.python == earlier.python,
            "NumPy's random": all(map(np.array_equal, self.numpy, earlier.numpy)),
            "torch's on the CPU": torch.equal(self.torch_cpu, earlier.torch_cpu),
            "torch's on the device": not has_device
            or torch.equal(self.torch_device, earlier.torch_device),
        }
        return [name for name, unmoved in same.items() if not unmoved]


class Generators:
    """All generators that code on `device` can draw from without making one of its own.

    They are set by their own methods: torch.manual_seed would look for every kind of device first,
    at 160 us a call (torch 2.13), these take 10 us together.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = _generator_of(device)

    def seed(self, seed: int) -> None:
        """Set all of them; `seed`: from 0 to 2**63 - 1."""
        random.seed(seed)
        # NumPy takes 32 bits.
        np.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        if self._device is not None:
            self._device.manual_seed(seed)

    def states(self) -> States:
        return States(
            python=random.getstate(),
            numpy=np.random.get_state(),
            torch_cpu=torch.default_generator.get_state(),
            torch_device=self._device.get_state() if self._device is not None else None,
        )

    def restore(self, states: States) -> None:
        random.setstate(states.python)
        np.random.set_state(states.numpy)
        torch.default_generator.set_state(states.torch_cpu)
        if self._device is not None and states.torch_device is not None:
            self._device.set_state(states.torch_device)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is drawn or set inside, all of them are put back."""
        states = self.states()
        try:
            yield
        finally:
            self.restore(states)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """What is drawn inside follows from `seed`, on any device; afterwards the generators stand
    where they stood.
    """
    # A device's generator is set here and not put back: each step sets it anyway (seed_of_step).
    with Generators().kept():
        torch.manual_seed(seed)  # of all devices, also before they are used for the first time
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        yield


def read_apart(items: Iterator[T], seed: int) -> Iterator[T]:
    """The same items, read by code that may draw. All it draws follows from `seed` and from what it
    read before.

    Between two items the generators stand where they stood.
    """
    generators = Generators()
    # Where its own generators begin: the state after the seed, before anything is read.
    with drawn_from(seed):
        own = generators.states()
    while True:
        # Around next() alone: what happens between two items is not the reader's.
        with generators.kept():
            generators.restore(own)
            try:
                item = next(items)
            except StopIteration:
                return
            # Before they are put back. From here its code goes on at the next item.
            own = generators.states()
        yield item


def seed_of_rank(seed: int, rank: int) -> int:
    """Where the seeds of a rank's steps begin."""
    return key_of(seed, _STEP, rank)


def seed_of_step(first: int, k: int) -> int:
    """What a rank's generators are set from at the start of optimizer step k; `first`: see
    seed_of_rank.

    NumPy and torch look at the low 32 bits of a seed: an odd stride repeats none of these.
    """
    # 63 bits, as Generators.seed takes them.
    return (first + k * _ODD) & 0x7FFFFFFFFFFFFFFF


def seed_of_sample(seed: int, epoch: int, sample_id: int) -> int:
    """What the generators are set from where a sample is transformed."""
    # One bit less, for the same reason.
    return key_of(seed, epoch, sample_id) >> 1


def _generator_of(device: torch.device | None) -> torch.Generator | None:
    """The global one of a device; None: that of the CPU is all there is."""
    if device is None or device.type == "cpu":
        return None
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    module = torch.get_device_module(device)
    module.init()  # its generators are made with the first use of the device
    index = device.index if device.index is not None else module.current_device()
    generator: torch.Generator = module.default_generators[index]
    return generator
