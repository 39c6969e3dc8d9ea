"""The time from an open store to the first batch, in a fresh process: a program for `loader_first_batch`.

python -m tests.benchmarks.first_batch_side URL CACHE_KEY MANIFEST_ID SHARE_OF_EPOCH
"""

import sys
import time

import torch

from pipeline.cache.manifest import read_manifest
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store


def main() -> None:
    torch.set_num_threads(1)
    url, cache_key, manifest_id, share = sys.argv[1:]
    started = time.perf_counter()
    store = open_store(url)
    manifest = read_manifest(store, cache_key=cache_key, manifest_id=manifest_id)
    loader = CacheLoader(reader=SampleReader(store=store, manifest=manifest), batch_size=32)
    position = Position(epoch=1, batch=min(int(float(share) * len(loader)), len(loader) - 1))
    batches = loader.epoch(position)
    batch = next(batches)
    seconds = time.perf_counter() - started
    assert batch.weight.all(), "every sample counts"
    batches.close()  # type: ignore[attr-defined]
    print(seconds)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
