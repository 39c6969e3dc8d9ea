"""The loader: batches from a cache's shards by ranged GETs, in an order fixed by (seed, epoch)."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from ldznet.images import to_tensor
from pipeline.batch import Batch
from pipeline.cache.entry import Entry, decode_entry, split_tar
from pipeline.cache.index import member_key
from pipeline.cache.manifest import Manifest, read_index
from pipeline.object_store.store import ObjectStore
from pipeline.sample_order import (
    PADDING,
    Position,
    Remainder,
    batches_in_epoch,
    contiguous_runs,
    epoch_order,
    rank_share,
)


class CorruptSampleError(OSError):
    """A sample's bytes are not those that its receipt vouches for."""


class SampleReader:
    """Reads samples of a manifest by index row; every byte is checked by its xxh3-64."""

    def __init__(self, *, store: ObjectStore, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.index = read_index(store, manifest)

    def read_run(self, rows: NDArray[np.int64]) -> list[Entry]:
        """Neighbouring rows of one shard in one ranged GET."""
        first, last = self.index[rows[0]], self.index[rows[-1]]
        shard = self.manifest.shards[int(first["shard"])]
        start = int(first["offset"])
        length = int(last["offset"]) + int(last["size"]) - start
        try:
            data = memoryview(self.store.get_range(shard.object_key, start=start, length=length))
        except KeyError as error:
            raise CorruptSampleError(
                f"the shard {self.store.url}/{shard.object_key} is gone, which the manifest names: "
                "restore it, or remove its receipt and run `ldznet precompute` again"
            ) from error
        return [self._decode(int(row), data, start, shard.object_key) for row in rows]

    def _decode(self, row: int, data: memoryview, start: int, object_key: str) -> Entry:
        span = self.index[row]
        offset = int(span["offset"]) - start
        stretch = data[offset : offset + int(span["size"])]
        key = member_key(self.index, row)
        if xxhash.xxh3_64_intdigest(stretch) != int(span["xxh3"]):
            raise CorruptSampleError(
                f"sample {key} in {self.store.url}/{object_key} is not what its receipt vouches for: "
                "`ldznet cache verify` tells how far it goes"
            )
        return decode_entry(key, split_tar(stretch, key=key))


class CacheLoader:
    """Batches for one rank. Every rank gets the same number; together they cover each sample once an epoch."""

    def __init__(
        self,
        *,
        reader: SampleReader,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        window: int = 8,
        shuffle: bool = True,
        remainder: Remainder = "drop",
        concurrency: int = 8,
        batches_ahead: int = 4,
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"the global batch of {batch_size} does not divide among {ranks} ranks")
        self._reader = reader
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks
        self._seed, self._window, self._shuffle = seed, window, shuffle
        self._remainder = remainder
        self._concurrency, self._batches_ahead = concurrency, batches_ahead

    def __len__(self) -> int:
        """Batches in an epoch."""
        samples = len(self._reader.index)
        return batches_in_epoch(samples, batch_size=self._batch_size, remainder=self._remainder)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Index rows in the order of an epoch, over all ranks."""
        if not self._shuffle:
            return np.arange(len(self._reader.index))
        sizes = np.array([shard.samples for shard in self._reader.manifest.shards], np.int64)
        return epoch_order(sizes, seed=self._seed, epoch=epoch, window=self._window)

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The rest of an epoch from a position: fetched ahead, handed out in order."""
        order = self.order(position.epoch)
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="loader") as pool:
            ahead: deque[tuple[NDArray[np.int64], list[Future[list[Entry]]]]] = deque()
            try:
                for batch in range(position.batch, len(self)):
                    rows = rank_share(
                        order, batch=batch, batch_size=self._batch_size, rank=self._rank, ranks=self._ranks
                    )
                    runs = contiguous_runs(rows[rows != PADDING], self._reader.index["shard"])
                    ahead.append((rows, [pool.submit(self._reader.read_run, run) for run in runs]))
                    if len(ahead) > self._batches_ahead:
                        yield self._collect(*ahead.popleft())
                while ahead:
                    yield self._collect(*ahead.popleft())
            finally:
                for _, futures in ahead:
                    for future in futures:
                        future.cancel()

    def _collect(self, rows: NDArray[np.int64], futures: Sequence[Future[list[Entry]]]) -> Batch:
        entries = [entry for future in futures for entry in future.result()]
        if not entries:  # a share of nothing but padding: any sample stands in, with weight 0
            entries = self._reader.read_run(np.array([0]))
            return collate(entries, size=len(rows), samples=0)
        return collate(entries, size=len(rows), samples=len(entries))


def collate(entries: Sequence[Entry], *, size: int, samples: int) -> Batch:
    """Stack entries into a batch of a fixed size; what is missing repeats the last entry with weight 0."""
    filled = [*entries, *[entries[-1]] * (size - len(entries))]
    blocks = filled[0].features
    images = None
    if filled[0].image is not None:
        images = torch.stack([to_tensor(entry.image) for entry in filled if entry.image is not None])
    return Batch(
        keys=tuple(entry.key for entry in filled),
        latents=torch.stack([entry.latents for entry in filled]),  # B,4,h,w
        context=torch.stack([entry.context for entry in filled]),  # B,77,D
        features={block: torch.stack([entry.features[block] for entry in filled]) for block in blocks},
        masks=torch.from_numpy(np.stack([entry.mask for entry in filled])).unsqueeze(1).float(),  # B,1,H,W
        weight=(torch.arange(size) < samples).float(),
        images=images,
        facts=tuple(entry.facts for entry in filled),
    )
