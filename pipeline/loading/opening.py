"""A recipe's loader: from a manifest to this rank's batches."""

from pathlib import Path

from pipeline.cache.manifest import Manifest
from pipeline.loading.config import LoaderConfig
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.local_cache import LocalCache
from pipeline.loading.sequential import SequentialLoader
from pipeline.object_store.store import ObjectStore


def open_training_loader(
    config: LoaderConfig,
    *,
    store: ObjectStore,
    manifest: Manifest,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
    seed: int = 0,
) -> CacheLoader | SequentialLoader:
    """Shuffled batches without end of epochs, each draw in its turn.

    Args:
        config: the recipe's `loader`.
        store: the cache.
        manifest: of the set.
        batch_size: over all ranks.
        rank: this one.
        ranks: their number.
        seed: of the order.

    Raises:
        UserError: the cache or the machine cannot serve what the configuration asks for.
    """
    if config.mode == "sequential":
        return SequentialLoader(
            store=store,
            manifest=manifest,
            batch_size=batch_size,
            rank=rank,
            ranks=ranks,
            seed=seed,
            shuffle_buffer=config.shuffle_buffer,
            batches_ahead=config.batches_ahead,
            processes=config.processes,
        )
    return CacheLoader(
        reader=_reader(config, store, manifest),
        batch_size=batch_size,
        rank=rank,
        ranks=ranks,
        seed=seed,
        window=config.window,
        remainder=config.remainder,
        concurrency=config.concurrency,
        batches_ahead=config.batches_ahead,
        ahead_bytes=config.ahead_mebibytes << 20,
        processes=config.processes,
        on_corrupt=config.on_corrupt,
        max_corrupt_share=config.max_corrupt_share,
    )


def open_evaluation_loader(
    config: LoaderConfig,
    *,
    store: ObjectStore,
    manifest: Manifest,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
) -> CacheLoader:
    """Draw 0 in the order of storage, each sample once. Always by the index, and a corrupt sample always fails."""
    return CacheLoader(
        reader=_reader(config, store, manifest),
        batch_size=batch_size,
        rank=rank,
        ranks=ranks,
        shuffle=False,
        remainder="pad",
        concurrency=config.concurrency,
        batches_ahead=config.batches_ahead,
        ahead_bytes=config.ahead_mebibytes << 20,
        processes=config.processes,
    )


def _reader(config: LoaderConfig, store: ObjectStore, manifest: Manifest) -> SampleReader:
    nearer = None
    if config.local_cache is not None:
        folder = Path(config.local_cache).expanduser().absolute()
        nearer = LocalCache(folder, limit=int(config.local_cache_gibibytes * 2**30))
    return SampleReader(store=store, manifest=manifest, nearer=nearer)
