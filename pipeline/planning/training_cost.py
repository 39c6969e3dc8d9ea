"""What training asks of the cache, and what it would cost to compute features anew in every epoch instead."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.spec import FeaturesConfig
from pipeline.loading.sample_order import epoch_order
from pipeline.planning.calibration import HostTimes
from pipeline.planning.pass_times import PassTimes
from pipeline.recipe import Recipe

_COUNTED_SAMPLES = 1_000_000  # of an epoch's order; more are taken to be like them


@dataclass(frozen=True, kw_only=True, slots=True)
class Payback:
    """Cached against computed online, with and without the early stop. Host work runs beside the device's."""

    step_s: float  # of training, a sample and rank; 0 where it is left out
    cached_s: float  # a sample
    online_s: float  # decode, VAE, text encoder and UNet up to the last block, for each sample of each epoch
    authors_s: float  # the same with the whole UNet
    epochs: float | None  # after which caching has paid against `online_s`; None: never
    epochs_authors: float | None  # against `authors_s`


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """What an epoch of training reads, and when caching pays."""

    set_name: str
    samples: int  # an epoch: one draw of every sample, counted for the first
    epochs: float
    sample_bytes: float
    gets: int  # ranged, an epoch, of all ranks
    bytes: int  # an epoch, of all ranks
    ranks: int
    samples_per_second: float | None  # a rank
    bytes_per_second: float | None  # a rank
    precompute_s: float | None  # of one worker, for what is missing of this set
    paybacks: tuple[Payback, ...]  # the training step left out; then with it, where it is known


def epoch_gets(
    shard_samples: Sequence[int], *, objects: Sequence[int], recipe: Recipe, most: int = _COUNTED_SAMPLES
) -> int:
    """Ranged GETs of an epoch over all ranks, by the loader's own order.

    Args:
        shard_samples: samples a shard, of one draw.
        objects: a shard's objects: itself, and its columns of further blocks.
        recipe: whose loader and training read.
        most: samples whose order is made, about.
    """
    sizes, weights = np.array(shard_samples, np.int64), np.array(objects, np.int64)
    if not sizes.sum():
        return 0
    every = max(1, round(int(sizes.sum()) / most))
    chosen, chosen_weights = sizes[::every], weights[::every]
    order = epoch_order(chosen, seed=recipe.train.seed, epoch=0, window=recipe.loader.window)
    order = order[: len(order) // recipe.train.batch_size * recipe.train.batch_size]  # the rest is dropped
    counted = int(chosen_weights[_shards_read(order, chosen, share=recipe.train.rank_batch)].sum())
    return round(counted * int(sizes.sum()) / max(1, int(chosen.sum())))


def _shards_read(order: NDArray[np.int64], sizes: NDArray[np.int64], *, share: int) -> NDArray[np.int64]:
    """The shard of each ranged GET: one for each run of neighbours within a shard and a rank's share of a batch."""
    shards = np.searchsorted(np.cumsum(sizes), order, side="right")
    begins = np.arange(len(order)) % share == 0
    begins[1:] |= (np.diff(order) != 1) | (np.diff(shards) != 0)
    return shards[begins]


def payback(
    *,
    samples: int,
    precompute_s: float,
    passes: PassTimes,
    host: HostTimes,
    read_s: float,
    step_s: float,
    features: FeaturesConfig,
) -> Payback:
    """After how many epochs a precompute has paid for itself, in seconds of one device.

    Online, every sample of every epoch is decoded and encoded anew, in the batch shapes of the recipe: a shuffled epoch
    shares no views. Reading and decoding run beside the device.

    Args:
        samples: of an epoch.
        precompute_s: seconds of one worker.
        passes: of the networks.
        host: decoding.
        read_s: a sample from the cache.
        step_s: of training, a sample; 0 leaves it out.
        features: the batch shapes.
    """
    encode_s = passes.vae_s / features.image_batch + passes.text_s / features.prompt_batch
    cached_s = max(read_s, step_s)
    online_s = max(host.decode_s, encode_s + passes.unet_s / features.feature_batch + step_s)
    authors_s = max(host.decode_s, encode_s + passes.whole_unet_s / features.feature_batch + step_s)

    def after(each_s: float) -> float | None:
        saved = samples * (each_s - cached_s)
        return precompute_s / saved if saved > 0 else None

    return Payback(
        step_s=step_s,
        cached_s=cached_s,
        online_s=online_s,
        authors_s=authors_s,
        epochs=after(online_s),
        epochs_authors=after(authors_s),
    )
