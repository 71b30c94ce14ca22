"""Samples that come one after the other, in one global order of which each rank has its part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa
from datasets import Features, Image, IterableDataset
from datasets.distributed import split_dataset_by_node

from train.batch import BatchPlan, divide, key_of
from train.batch.window import Batch, Place
from train.data.checks import check_values
from train.data.deferred import DeferredReads, ReadSlice
from train.data.handout import Step, parts_of_rank
from train.data.pixels import pixels_of, scaled
from train.data.protocols import TrainingSet, start_of_overfit
from train.data.reading import Reader, stack
from train.data.rows import finished
from train.data.shares import DataError, RankShare
from train.data.stream_blocks import Block, in_stages, one_ahead
from train.errors import RunFailed
from train.randomness import read_apart


class Numbered(NamedTuple):
    """Rows as they were read, and the `sample_id` of each."""

    rows: pa.Table
    ids: range

    def slice(self, start: int, stop: int) -> "Numbered":
        return Numbered(self.rows.slice(start, stop - start), self.ids[start:stop])


@dataclass(frozen=True)
class Stream(TrainingSet):
    """One rank of each machine reads all samples, and hands the others theirs (train.data.handout).

    So no rank can run dry before the others, whatever the shards. With `by_rank` a rank reads its
    own shards only, and begins them again when they end: which samples make up a step then depends
    on the number of ranks, and small shards are seen more often. (Where the shards cannot be dealt
    evenly, datasets deals single samples instead.)
    """

    dataset: IterableDataset
    reader: Reader
    shuffle_buffer: int  # samples; 0: the order of the source
    by_rank: bool
    # What an error means that is raised while the source is read, such as of a damaged file.
    explain: Callable[[Exception], Exception] | None = None
    # The user's own code makes the samples while they are read, and may draw random numbers.
    by_user_code: bool = False
    is_deferred: bool = False  # samples are decoded when their micro-batch is asked for
    # With it: the same, with the columns that weights are counted from.
    weighing: "Stream | None" = None

    @property
    def size(self) -> None:
        return None

    def first(self, seed: int, count: int) -> Batch:
        with self._explained():
            blocks = self._blocks(self._order(self.dataset, seed, 0), count)
            table = next(self._apart(blocks, seed, 0)).samples
        batch = self._batch(Numbered(table, range(table.num_rows)))
        for name in self._images(table):
            batch[name] = scaled(batch[name])
        return batch

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """To begin at a position, what comes before it is read and dropped."""
        with self._explained():
            if self.by_rank:
                # Without end: nothing below is reached.
                yield from self._shares_of_own_shards(plan, seed, rank, position)
            yield from self._shares_of_all(plan, seed, rank, position, overfit)

    def _shares_of_all(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        for part in parts_of_rank(self._steps(plan, seed, position, overfit), plan, rank):
            first = part.start + part.first
            yield self._share(
                Numbered(part.rows, range(first, first + part.rows.num_rows)),
                filler=Numbered(part.filler, range(part.start, part.start + 1)),
                epoch=part.epoch,
                last_of_epoch=part.last_of_epoch,
                sizes=part.sizes,
                largest=max(plan.shares(part.of_step)),
                of_step=part.of_step,
            )

    def _steps(
        self, plan: BatchPlan, seed: int, position: Place, overfit: int | None
    ) -> Iterator[Step]:
        """One after the other, over all ranks, without end."""
        end = None
        if overfit:
            end = overfit * plan.effective
        position = start_of_overfit(position, plan, overfit)
        while True:
            ordered = self._order(self.dataset, seed, position.epoch)
            blocks = self._blocks(ordered, plan.effective, position.samples, end, plan.drop_tail)
            if plan.stages:
                blocks = in_stages(blocks, plan, position.seen)
            seen = position.seen
            # Explained on the rank that reads: the others get the error from it.
            with self._explained():
                for block in self._apart(blocks, seed, position.epoch):
                    yield Step(
                        epoch=position.epoch,
                        seen=seen,
                        start=block.start,
                        last_of_epoch=block.is_last,
                        samples=block.samples,
                    )
                    seen += block.samples.num_rows
            epoch = 0 if overfit else position.epoch + 1
            position = Place(epoch=epoch, samples=0, seen=seen)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        # A sentence already; a rank that was lost is no fault of the source.
        except (DataError, RunFailed):
            raise
        except Exception as error:
            if self.explain is None:
                raise
            raise self.explain(error) from error

    def _shares_of_own_shards(
        self, plan: BatchPlan, seed: int, rank: int, position: Place
    ) -> Iterator[RankShare]:
        """In each step this rank's share of a full one, over the ends of its own shards."""
        # Each rank repeats its own shards: there is no common end of an epoch.
        # datasets' own, since accelerate's division of shards is uneven: 24 and 16 samples of 5
        # shards on 2 ranks.
        shards = split_dataset_by_node(self.dataset, rank, plan.world_size)
        ordered = self._order(shards, seed, 0)
        # Looked at first: to repeat nothing is to look for a sample without end.
        if next(iter(ordered), None) is None:
            raise DataError(f"rank {rank} has no samples of its own. Set: data.split_by_node=false")
        _, sizes = divide(plan, plan.effective, rank)
        count = sum(sizes)
        size = max(1, count)  # a rank with no share needs a filler
        steps = position.samples // plan.effective
        blocks = self._blocks(ordered.repeat(None), size, start=steps * size)
        for block in self._apart(blocks, seed, 0):
            first = rank + block.start * plan.world_size
            # Ranks take turns, so that no two of them give a sample the same number.
            ids = range(first, first + size * plan.world_size, plan.world_size)
            samples = Numbered(block.samples, ids)
            yield self._share(
                samples.slice(0, count),
                filler=samples.slice(0, 1),
                epoch=0,
                last_of_epoch=False,
                sizes=sizes,
                largest=max(plan.shares(plan.effective)),
                # Only unequal shares ask for it, and these are refused beside data.split_by_node
                # (train/config/check_batch.py).
                of_step=0,
            )

    @property
    def is_weighed(self) -> bool:
        return self.weighing is not None

    def deferred(self, weighed: Sequence[str]) -> "Stream":
        """Rows are kept undecoded until their step is over."""
        weighing = self._only(weighed) if weighed and self._has(weighed) else None
        return replace(self, is_deferred=True, weighing=weighing)

    def _has(self, names: Sequence[str]) -> bool:
        return set(names) <= self.reader.columns.keys()

    def _only(self, names: Sequence[str]) -> "Stream":
        return replace(self, reader=self.reader.only(names))

    def _share(
        self,
        samples: Numbered,
        filler: Numbered,
        *,
        epoch: int,
        last_of_epoch: bool,
        sizes: tuple[int, ...],
        largest: int,
        of_step: int,
    ) -> RankShare:
        """The samples decoded now, or later; `filler`: one sample of the step."""
        share = RankShare(
            epoch=epoch,
            last_of_epoch=last_of_epoch,
            samples={},
            sizes=sizes,
            largest=largest,
            of_step=of_step,
            tokens=self._tokens(samples.rows),
        )
        if self.is_deferred:
            share.samples = self._later(samples, filler, sizes)
            return share
        batch = self._batch(samples)
        share.samples = batch
        if 0 in sizes:
            share.filler = self._batch(filler)
        if batch:
            share.pixels = pixels_of(batch, self._images(samples.rows))
        return share

    def _later(self, samples: Numbered, filler: Numbered, sizes: Sequence[int]) -> DeferredReads:
        return DeferredReads(
            read=self._slices(samples),
            filler=lambda: self._batch(filler),
            weighed=None if self.weighing is None else self.weighing._slices(samples),
            sizes=sizes,
            images=self._images(samples.rows),
        )

    def _slices(self, samples: Numbered) -> ReadSlice:
        def read(start: int, stop: int) -> Batch:
            with self._explained():
                return self._batch(samples.slice(start, stop))

        return read

    def _tokens(self, rows: pa.Table) -> int | None:
        """In these rows, where samples are blocks of tokens."""
        return None

    def _order(self, dataset: IterableDataset, seed: int, epoch: int) -> IterableDataset:
        # Before it is shuffled: the buffer then holds no column that is not read.
        dataset = dataset.select_columns(self.reader.names)
        if not self.shuffle_buffer:
            return dataset
        options = {}
        if self.by_user_code:
            # From several shards at once datasets (5.2) would read in threads: these draw at any
            # moment of a step.
            options["max_buffer_input_shards"] = 1
        # A new seed for each epoch, since the next method that is called loses what set_epoch has
        # set (datasets 5.2).
        return dataset.shuffle(
            seed=key_of(seed, epoch) >> 1, buffer_size=self.shuffle_buffer, **options
        )

    def _apart(self, blocks: Iterator[Block], seed: int, epoch: int) -> Iterator[Block]:
        """The blocks; what the source draws is the same on every rank.

        Also after a resume, which reads the epoch from its start.
        """
        if not self.by_user_code:
            return blocks
        return read_apart(blocks, key_of(seed, epoch) >> 1)

    def _blocks(
        self,
        ordered: IterableDataset,
        size: int,
        start: int = 0,
        end: int | None = None,
        drop_tail: bool = False,
    ) -> Iterator[Block]:
        """The samples from position `start` on, up to `end`, `size` at a time."""
        # `take` before `skip`: the end is counted from the beginning of the epoch as well.
        if end is not None:
            ordered = ordered.take(end)
        if start:
            ordered = ordered.skip(start)
        tables = ordered.with_format("arrow").iter(batch_size=size, drop_last_batch=drop_tail)
        return one_ahead(tables, start)

    def _batch(self, samples: Numbered) -> Batch:
        """Under the names of the task; {} where there are none."""
        rows = samples.rows
        if not rows.num_rows:  # nothing left for this rank: it takes the filler
            return {}
        check_values(rows, self.reader, "train", samples.ids.start)
        picked = self.reader.read(rows, self._features(rows), samples.ids)
        batch = stack(picked, samples.ids)
        images = self._images(rows)
        # Images of 8 bits stay as they are: the device scales them.
        return finished(batch, images - pixels_of(batch, images), samples.ids)

    def _features(self, rows: pa.Table) -> Features:
        return self.dataset.features or Features.from_arrow_schema(rows.schema)

    def _images(self, rows: pa.Table) -> frozenset[str]:
        """Columns of images, by the names of the task."""
        features = self._features(rows)
        images = set()
        for name, columns in self.reader.columns.items():
            if isinstance(columns, str) and isinstance(features.get(columns), Image):
                images.add(name)
        return frozenset(images)
