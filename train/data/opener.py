"""How the rows of a split become samples: in memory, read as needed, or as a stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import psutil
import pyarrow as pa
from datasets import Dataset, Image, IterableDataset

from train.batch.order import Ids
from train.config import Config, resolve, resolve_source
from train.data.checks import check_values
from train.data.columns import match_columns
from train.data.files import Readable
from train.data.holdout import HOLDOUT_SEED
from train.data.labels import class_line
from train.data.loader import Loader, Transform
from train.data.protocols import EvaluationSet, TrainingSet
from train.data.reading import INPUTS, Reader
from train.data.rows import Rows, Table, preload
from train.data.scales import input_names, warn_of_scales
from train.data.shares import DataError
from train.data.splits import load_all
from train.data.stream import Stream
from train.distributed.ranks import launched_local_world_size
from train.errors import counted

MEMORY_SHARE = 0.25
"""Of a machine's memory: what its ranks may fill with samples."""


@dataclass(frozen=True)
class Opener:
    config: Config
    reader: Reader
    explain: Callable[[Exception], Exception]  # what a stream cannot read

    def checked(self, dataset: Readable, split: str) -> Dataset:
        """All rows of a split. Raises DataError for columns and values that cannot be read."""
        rows = load_all(dataset)
        match_columns(rows.column_names, self.config.data.columns, list(self.reader.columns))
        if len(rows) == 0:
            raise DataError(
                "a set of the data is empty. Look at data.split, data.eval_split and evaluate.sets"
            )
        check_values(as_arrow(rows.select_columns(self.reader.names)), self.reader, split)
        return rows

    def training(self, dataset: Readable, rows: Ids | None) -> TrainingSet:
        """`rows`: those to train on; None: all."""
        data = self.config.data
        if isinstance(dataset, IterableDataset):
            return Stream(
                dataset=dataset,
                reader=self.reader,
                shuffle_buffer=data.shuffle_buffer,
                by_rank=data.split_by_node,
                explain=self.explain,
                by_user_code=resolve_source(data.source) is not None,
            )
        transform = _transform(data.transform)
        samples = self._samples(dataset, rows, is_transformed=transform is not None)
        return self._transformed(samples, transform, self.config.seed)

    def evaluation(self, dataset: Dataset, rows: Ids | None = None) -> EvaluationSet:
        """`rows`: those to evaluate on; None: all."""
        transform = _transform(self.config.data.eval_transform)
        samples = self._samples(dataset, rows, is_transformed=transform is not None)
        # Not the run's seed: what eval_transform draws is the same for runs that differ in it.
        return self._transformed(samples, transform, HOLDOUT_SEED)

    def notes(self, samples: TrainingSet) -> Iterator[str]:
        """What the screen says of the samples that are trained on."""
        for name, classes in self.reader.classes.items():
            yield class_line(name, classes)
        if not self.config.data.normalize and INPUTS in self.reader.columns:
            yield from warn_of_scales(samples, input_names(self.config.data))
        if isinstance(samples, Loader):
            yield self._loading(samples.samples)

    def _loading(self, samples: Rows | Table) -> str:
        """How samples are loaded that are not simply held in memory, and why."""
        data = self.config.data
        source = "from memory" if isinstance(samples, Rows) else "from the disk"
        workers = counted(data.workers, "worker") if data.workers else "no workers"
        return f"loading   {source}, as needed, by {workers} per rank ({self._why_loaded(samples)})"

    def _why_loaded(self, samples: Rows | Table) -> str:
        data = self.config.data
        if isinstance(samples, Rows):
            return f"data.transform={data.transform}"
        if data.preload is False:
            return "data.preload=false"
        if not (samples.images and data.transform):
            size = self._bytes_of(samples.dataset) / 2**30
            limit = memory_of_a_rank() / 2**30
            return (
                f"about {size:.3g} GiB, over the {limit:.3g} GiB that a rank may fill: "
                f"{MEMORY_SHARE:.0%} of the machine's"
            )
        return f"data.transform={data.transform}"

    def _transformed(
        self, samples: Rows | Table, transform: Transform | None, seed: int
    ) -> Rows | Loader:
        if isinstance(samples, Rows) and transform is None:
            return samples
        return Loader(
            samples=samples,
            transform=transform,
            seed=seed,
            workers=self.config.data.workers,
            # Before the other ranks give up waiting for this one.
            timeout_seconds=self.config.runtime.timeout_seconds / 2,
        )

    def _samples(self, dataset: Dataset, rows: Ids | None, is_transformed: bool) -> Rows | Table:
        images = self._image_columns(dataset)
        if rows is None:
            rows = np.arange(len(dataset))
        else:
            dataset = dataset.select(rows)
        # Columns that no task reads are not read from the disk either.
        dataset = dataset.select_columns(self.reader.names).with_format("arrow")
        preloads = self.config.data.preload
        if preloads is None:
            is_left_to_workers = bool(images) and is_transformed
            preloads = not is_left_to_workers and self._bytes_of(dataset) <= memory_of_a_rank()
        if preloads:
            return preload(dataset, self.reader, images, rows)
        return Table(dataset=dataset, reader=self.reader, images=images, rows=rows)

    def _image_columns(self, dataset: Dataset) -> frozenset[str]:
        """By the names of the task."""
        images = set()
        for name, column in self.reader.columns.items():
            if isinstance(column, str) and isinstance(dataset.features[column], Image):
                images.add(name)
        return frozenset(images)

    def _bytes_of(self, dataset: Dataset) -> int:
        """In memory: as many times that of the first sample as there are samples."""
        # The first sample stands for all: to measure each would be to read all.
        first = self.reader.read(dataset[:1], dataset.features, range(1))
        tensors = chain.from_iterable(first.values())
        return len(dataset) * sum(tensor.nbytes for tensor in tensors)


def as_arrow(dataset: Readable) -> pa.Table | None:
    """All of a data set, where it lies: nothing is copied. None: a stream's is not known."""
    if isinstance(dataset, IterableDataset):
        return None
    return dataset.with_format("arrow")[:]


def memory_of_a_rank() -> float:
    """Bytes that one rank may fill with samples."""
    # All ranks of a machine fill the same memory.
    return MEMORY_SHARE * psutil.virtual_memory().total / launched_local_world_size()


def _transform(name: str | None) -> Transform | None:
    return resolve(name, "train.data") if name else None
