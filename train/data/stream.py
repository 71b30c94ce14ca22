"""Samples that come one after the other, as many as there are: each rank has its own, of one global
order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa
from datasets import Features, Image, IterableDataset
from datasets.distributed import split_dataset_by_node

from train.batch import BatchPlan, divide, key_of
from train.batch.window import Batch, Place
from train.data.checks import check_values
from train.data.deferred import DeferredReads
from train.data.handout import Step, parts
from train.data.pixels import pixels_of, scaled
from train.data.reading import Reader, stack
from train.data.rows import finished
from train.data.shares import DataError, RankShare
from train.errors import RunFailed
from train.randomness import read_apart

Blocks = Iterator[tuple[int, pa.Table, bool]]
"""(place of its first sample in the epoch, samples, whether it is the last block of the epoch)"""


@dataclass(frozen=True)
class Stream:
    """One rank of each machine reads all samples, and hands the others theirs (train.data.handout):
    no rank can run dry before the others, whatever the shards.

    With `by_rank` a rank reads its own shards only, and begins them again when they end:
    which samples make up a step then depends on the number of ranks, and small shards are seen more
    often. (Where the shards cannot be dealt evenly, datasets deals single samples instead.)
    """

    dataset: IterableDataset
    reader: Reader
    shuffle_buffer: int  # samples; 0: the order of the source
    by_rank: bool
    # what cannot be read, such as a damaged file
    explain: Callable[[Exception], Exception] | None = None
    # the user's own code makes the samples while they are read, and may draw
    by_user_code: bool = False
    is_deferred: bool = False  # samples are decoded when their micro-batch's turn comes
    # with it: the same, with the columns that weights are counted from
    weighing: "Stream | None" = None

    @property
    def size(self) -> None:
        return None

    def first(self, seed: int, count: int) -> Batch:
        with self._explained():
            _, table, _ = next(
                self._apart(self._blocks(self._order(self.dataset, seed, 0), count), seed, 0)
            )
        batch, images = self._batch(table, range(table.num_rows)), self._images(table)
        return {
            name: scaled(column) if name in images else column for name, column in batch.items()
        }

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """As data.shares has it; to begin at a place, what comes before it is read and left out."""
        with self._explained():
            if self.by_rank:
                yield from self._own_shares(plan, seed, rank, place)
            yield from self._shares(plan, seed, rank, place, overfit)

    def _shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        for part in parts(self._steps(plan, seed, place, overfit), plan, rank):
            count, first = part.rows.num_rows, part.start + part.first
            yield self._share(
                RankShare(
                    epoch=part.epoch,
                    last_of_epoch=part.last_of_epoch,
                    samples={},
                    sizes=part.sizes,
                    largest=max(plan.shares(part.of_step)),
                    of_step=part.of_step,
                    tokens=self._tokens(part.rows, 0, count),
                ),
                part.rows,
                range(first, first + count),
                (part.filler, range(part.start, part.start + 1)),
            )

    def _steps(
        self, plan: BatchPlan, seed: int, place: Place, overfit: int | None
    ) -> Iterator[Step]:
        if overfit:
            place = Place(0, place.samples % (overfit * plan.effective))
        while True:
            ordered = self._order(self.dataset, seed, place.epoch)
            end = overfit * plan.effective if overfit else None
            found = self._blocks(ordered, plan.effective, place.samples, end, plan.drop_tail)
            if plan.stages:
                found = in_stages(found, plan, place.seen)
            seen = place.seen
            with self._explained():  # here, where it was read: another rank only hears what it says
                for start, table, last in self._apart(found, seed, place.epoch):
                    yield Step(place.epoch, seen, start, last, table)
                    seen += table.num_rows
            place = Place(0 if overfit else place.epoch + 1, 0, seen)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DataError, RunFailed):
            raise
        except Exception as error:
            raise (self.explain(error) if self.explain else error) from error

    def _own_shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place
    ) -> Iterator[RankShare]:
        """In each step as many samples as this rank's share of a full one, over the ends of its own
        shards.
        """
        own = self._order(split_dataset_by_node(self.dataset, rank, plan.world_size), seed, 0)
        if next(iter(own), None) is None:
            raise DataError(
                f"rank {rank} has no samples of its own. Type: data.split_by_node=false"
            )
        _, sizes = divide(plan, plan.effective, rank)
        wanted = max(1, sum(sizes))  # one with no share needs a filler
        found = self._blocks(own.repeat(None), wanted, place.samples // plan.effective * wanted)
        for start, table, _ in self._apart(found, seed, 0):
            ids = range(
                rank + start * plan.world_size,
                rank + (start + wanted) * plan.world_size,
                plan.world_size,
            )
            yield self._share(
                RankShare(
                    epoch=0,
                    last_of_epoch=False,
                    samples={},
                    sizes=sizes,
                    largest=max(plan.shares(plan.effective)),
                    tokens=self._tokens(table, 0, sum(sizes)),
                ),
                table.slice(0, sum(sizes)),
                ids[: sum(sizes)],
                (table.slice(0, 1), ids[:1]),
            )

    @property
    def is_weighed(self) -> bool:
        return self.weighing is not None

    def deferred(self, weighed: Sequence[str]) -> "Stream":
        """As data.shares has it; rows are kept undecoded until their step is over."""
        weighing = self._only(weighed) if weighed and self._has(weighed) else None
        return replace(self, is_deferred=True, weighing=weighing)

    def _has(self, names: Sequence[str]) -> bool:
        return set(names) <= self.reader.columns.keys()

    def _only(self, names: Sequence[str]) -> "Stream":
        return replace(
            self,
            reader=replace(
                self.reader, columns={name: self.reader.columns[name] for name in names}
            ),
        )

    def _share(
        self, share: RankShare, rows: pa.Table, ids: range, filler: tuple[pa.Table, range]
    ) -> RankShare:
        """The share with its samples: `rows`, with these `sample_id`s, decoded now or later;
        `filler`: one of them.
        """
        if self.is_deferred:
            weighing = self.weighing
            share.samples = DeferredReads(
                read=lambda start, stop: self._read(rows, start, stop, ids),
                filler=lambda: self._batch(*filler),
                weighed=None
                if weighing is None
                else lambda start, stop: weighing._read(rows, start, stop, ids),
                sizes=share.sizes,
                images=self._images(rows),
            )
            return share
        share.samples = self._batch(rows, ids)
        share.filler = self._batch(*filler) if 0 in share.sizes else {}
        share.pixels = (
            pixels_of(share.samples, self._images(rows)) if share.samples else frozenset()
        )
        return share

    def _read(self, rows: pa.Table, start: int, stop: int, ids: range) -> Batch:
        with self._explained():
            return self._batch(rows.slice(start, stop - start), ids[start:stop])

    def _tokens(self, table: pa.Table, first: int, count: int) -> int | None:
        """Of some rows of a table, where samples are blocks of tokens."""
        return None

    def _order(self, dataset: IterableDataset, seed: int, epoch: int) -> IterableDataset:
        dataset = dataset.select_columns(self.reader.names)
        if not self.shuffle_buffer:
            return dataset
        options = {}
        if self.by_user_code:
            # From several shards at once datasets (5.2) would read in threads: these draw at any
            # moment of a step.
            options["max_buffer_input_shards"] = 1
        # Seeded anew for each epoch: what set_epoch says is lost by the next method that is called
        # (datasets 5.2).
        return dataset.shuffle(
            seed=key_of(seed, epoch) >> 1, buffer_size=self.shuffle_buffer, **options
        )

    def _apart(self, blocks: Blocks, seed: int, epoch: int) -> Blocks:
        """What the source draws is the same on every rank, and after a resume, which reads the
        epoch from its start.
        """
        return read_apart(blocks, key_of(seed, epoch) >> 1) if self.by_user_code else blocks

    def _blocks(
        self,
        ordered: IterableDataset,
        size: int,
        start: int = 0,
        end: int | None = None,
        drop_tail: bool = False,
    ) -> Blocks:
        """The samples from place `start` on, up to `end`, `size` at a time."""
        chosen = ordered if end is None else ordered.take(end)
        chosen = chosen.skip(start) if start else chosen
        return one_ahead(
            chosen.with_format("arrow").iter(batch_size=size, drop_last_batch=drop_tail), start
        )

    def _batch(self, rows: pa.Table, ids: range) -> Batch:
        """Rows under the names of the task, with these `sample_id`s."""
        if not rows.num_rows:  # nothing left for this rank: it takes the filler
            return {}
        check_values(rows, self.reader, "train", ids.start)
        batch = stack(self.reader.read(rows, self._features(rows), ids), ids)
        images = self._images(rows)
        return finished(batch, images - pixels_of(batch, images), ids)

    def _features(self, rows: pa.Table) -> Features:
        return self.dataset.features or Features.from_arrow_schema(rows.schema)

    def _images(self, rows: pa.Table) -> frozenset[str]:
        """Columns of images, by the names of the task."""
        features = self._features(rows)
        return frozenset(
            name
            for name, own in self.reader.columns.items()
            if isinstance(features.get(str(own)), Image)
        )


def one_ahead(tables: Iterable[pa.Table], start: int) -> Blocks:
    """One block is read ahead, to know which is the last; `start` is the place of the
    first sample.
    """
    ahead = None
    for table in tables:
        if ahead is not None:
            yield start, ahead, False
            start += ahead.num_rows
        ahead = table
    if ahead is None:
        raise DataError(
            "the stream has no samples, or fewer than data.drop_tail needs for one step"
        )
    yield start, ahead, True


def in_stages(blocks: Blocks, plan: BatchPlan, seen: int) -> Blocks:
    """The same samples, in blocks as large as the steps that a schedule makes of them."""
    held: pa.Table | None = None  # read, and not yet given on
    first = 0
    for start, table, last in blocks:
        if held is None or not held.num_rows:
            held, first = table, start
        else:
            held = pa.concat_tables([held, table])
        while held.num_rows >= (size := plan.at(seen).effective) or (last and held.num_rows):
            step, held = held.slice(0, size), held.slice(size)
            yield first, step, last and not held.num_rows
            seen += step.num_rows
            first += step.num_rows
