"""Sequential mode: shards streamed from end to end by stock `webdataset`, its own shuffle buffer and all.

It suits stores that are slow at ranges. It gives up, against the indexed mode: the order depends on the numbers of
ranks and processes; an epoch leaves some samples out and shows others twice, where ranks hold unequal numbers; samples
are shuffled by whole shards and a buffer only; no checksum is looked at; and resuming within an epoch reads it again
from its start. Each rank and process needs a shard of its own.
"""

import io
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from torch.utils.data import DataLoader, IterableDataset

from ldznet.errors import UserError
from pipeline.cache.entry import EXTENSIONS, Entry, decode_entry
from pipeline.cache.manifest import Manifest
from pipeline.draws import draw_generator
from pipeline.loading.batch import Batch
from pipeline.loading.batch_reading import LoadedBatch
from pipeline.loading.collate import collate
from pipeline.loading.sample_order import Position, SampleOrder
from pipeline.loading.worker_processes import end_workers
from pipeline.object_store.files import FileStore
from pipeline.object_store.store import ObjectStore

_READ_BYTES = 1 << 20  # tarfile asks for 10 KiB at a time


class SequentialLoader:
    """Training batches for one rank, by stock `webdataset`. Every rank gets the same number of batches."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        manifest: Manifest,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        shuffle_buffer: int = 64,
        batches_ahead: int = 4,
        processes: int = 0,
    ) -> None:
        """Reads nothing yet.

        Args:
            store: the cache.
            manifest: of the set.
            batch_size: over all ranks.
            rank: this one.
            ranks: their number.
            seed: of the order.
            shuffle_buffer: samples held by each process, out of which the next is drawn.
            batches_ahead: read while one is being trained on.
            processes: that read and decode; at least one, for `webdataset` asks the process which rank it is.

        Raises:
            UserError: there are too few shards, or blocks of them lie in columns.
            ValueError: the batch does not divide among the ranks.
        """
        if batch_size % ranks:
            raise ValueError(f"the global batch of {batch_size} does not divide among {ranks} ranks")
        self._store, self._manifest = store, manifest
        self._order = SampleOrder.of(manifest.shards, batch_size=batch_size, seed=seed)
        self._rank, self._ranks, self._seed = rank, ranks, seed
        self._shuffle_buffer, self._batches_ahead = shuffle_buffer, batches_ahead
        self._processes = max(1, processes)
        self._check()

    def __len__(self) -> int:
        """Batches in an epoch: as many as the samples of its draw give, over all ranks."""
        return len(self._order)

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The rest of an epoch. Batches before the position are read and thrown away."""
        batches: DataLoader[LoadedBatch] = DataLoader(
            self._stream(position.epoch),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self._processes,
            prefetch_factor=max(1, self._batches_ahead // self._processes),
            multiprocessing_context="spawn",
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
        running: Any = iter(batches)
        try:
            for loaded in islice(running, position.batch, len(self)):
                yield loaded.batch
        finally:
            end_workers(running)

    def close(self) -> None:
        """Nothing outlives an epoch."""

    def _check(self) -> None:
        if any(shard.columns for shard in self._manifest.shards):
            raise UserError(
                "some blocks of this cache lie in columns, which loader.mode=sequential cannot join: use indexed"
            )
        readers = self._ranks * self._processes
        for draw in range(self._order.draw_count):
            shards = sum(shard.draw == draw and shard.samples > 0 for shard in self._manifest.shards)
            if shards < readers:
                raise UserError(
                    f"{shards} shards are too few for {self._ranks} ranks of {self._processes} processes each, which "
                    "loader.mode=sequential gives one each at least: use indexed, or smaller cache.shard_mebibytes"
                )

    def _stream(self, epoch: int) -> "ShardStream":
        """The epoch's shards, in an order that is the same for all ranks."""
        draw = self._order.draw_of(epoch)
        shards = [one for one in self._manifest.shards if one.draw == draw and one.samples]
        shuffled = draw_generator("shard order", self._seed, epoch).permutation(len(shards))
        return ShardStream(
            urls=tuple(_stock_url(self._store, shards[number].object_key) for number in shuffled),
            rank=self._rank,
            ranks=self._ranks,
            seed=self._seed,
            epoch=epoch,
            shuffle_buffer=self._shuffle_buffer,
            rank_batch=self._order.batch_size // self._ranks,
            blocks=self._manifest.spec.features.blocks,
        )


@dataclass(frozen=True, kw_only=True)
class ShardStream(IterableDataset[LoadedBatch]):
    """Batches of one process without end: its shards again and again. Runs in a process of its own."""

    urls: tuple[str, ...]
    rank: int
    ranks: int
    seed: int
    epoch: int
    shuffle_buffer: int
    rank_batch: int
    blocks: tuple[int, ...]

    def __iter__(self) -> Iterator[LoadedBatch]:
        """Batches of `rank_batch` samples each."""
        import webdataset

        webdataset.gopen_schemes["s3"] = open_s3
        info = torch.utils.data.get_worker_info()
        assert info is not None, "a process of its own: its environment tells webdataset which rank it is"
        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(self.rank), str(self.ranks)
        samples = (
            webdataset.WebDataset(
                list(self.urls),
                shardshuffle=False,
                nodesplitter=webdataset.split_by_node,
                workersplitter=webdataset.split_by_worker,
            )
            .shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, seed=self._shuffle_seed(info.id))
            .map(partial(entry_of, blocks=self.blocks))
            .repeat()
        )
        with closing(iter(samples)) as entries:
            while True:
                batch = list(islice(entries, self.rank_batch))
                yield LoadedBatch(batch=collate(batch, size=self.rank_batch, samples=self.rank_batch))

    def _shuffle_seed(self, process: int) -> int:
        generator = draw_generator("shuffle buffer", self.seed, self.epoch, self.rank, process)
        return int(generator.integers(2**63))


def entry_of(sample: dict[str, Any], *, blocks: tuple[int, ...]) -> Entry:
    """What `webdataset` read of a sample, decoded by us: its own decoders would unpickle.

    Raises:
        OSError: it is no sample of ours.
    """
    files = {name: content for name, content in sample.items() if name in EXTENSIONS}
    try:
        return decode_entry(sample["__key__"], files, blocks=blocks)
    except ValueError as error:
        raise OSError(f"{sample['__url__']} holds what is no sample: {error}") from error


def open_s3(url: str, *_arguments: Any, **_options: Any) -> io.BufferedReader:
    """An object's body as a stream, for `webdataset`. Endpoint and credentials come from the environment."""
    import boto3

    place = urlsplit(url)
    answer = boto3.client("s3").get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))
    return io.BufferedReader(cast("io.RawIOBase", answer["Body"]), _READ_BYTES)


def _stock_url(store: ObjectStore, key: str) -> str:
    if not isinstance(store, FileStore):
        return f"{store.url}/{key}"
    path = str(store.path(key))
    if urlsplit(path).path != path:
        raise UserError(
            f"webdataset cannot open {path}: loader.mode=sequential needs a folder without # and ?"
        )
    return path


def _as_it_is(batch: Any) -> Any:
    return batch
