"""What stands around the micro-batches of a step."""

from collections.abc import Sequence

from train.batch.window import MicroBatches


class WrappedMicroBatches:
    """Base of wrappers that hand out as many micro-batches as the inner ones, of the same sizes.

    A subclass adds `__iter__` and `recut` (train.batch.window.MicroBatches).
    """

    def __init__(self, inner: MicroBatches) -> None:
        self._inner = inner

    @property
    def sizes(self) -> Sequence[int]:
        return self._inner.sizes

    def __len__(self) -> int:
        return len(self._inner)
