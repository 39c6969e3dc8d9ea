"""One timestep of a probe: a decoder for each block, trained and scored. Knows nothing of Ray."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ldznet.config import Config
from ldznet.probe import ProbeTraining, probe_logits, train_probe
from ldznet.scores import SegmentationScores
from pipeline.cache.manifest import Manifest
from pipeline.loading.loader import SampleReader
from pipeline.object_store.opening import open_store
from pipeline.probing.config import ProbeConfig
from pipeline.probing.features import ProbeSamples


class CellScore(Config):
    """How well one block at one timestep can be read. AP in [0,1] with its 95 % interval over images."""

    block: int
    timestep: int
    ap: float
    low: float | None
    high: float | None
    miou: float  # at the best threshold on the scored set
    phrases: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRows:
    """Rows of the two sets' indexes that hold one timestep."""

    timestep: int
    train: NDArray[np.int64]
    score: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedCache:
    """The cache and the manifests of the two sets."""

    url: str
    train: Manifest
    score: Manifest


def probe_timestep(
    cache: ProbedCache, rows: CellRows, *, blocks: tuple[int, ...], config: ProbeConfig
) -> list[CellScore]:
    """Train and score a decoder a block. Each is a pure function of features, masks and configuration."""
    torch.set_num_threads(config.threads)
    store = open_store(cache.url)
    train = ProbeSamples.read(SampleReader(store=store, manifest=cache.train), rows.train, blocks=blocks)
    score = ProbeSamples.read(SampleReader(store=store, manifest=cache.score), rows.score, blocks=blocks)
    return [_probe_block(train, score, block, timestep=rows.timestep, config=config) for block in blocks]


def _probe_block(
    train: ProbeSamples, score: ProbeSamples, block: int, *, timestep: int, config: ProbeConfig
) -> CellScore:
    training = ProbeTraining(
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        hidden=config.hidden,
        seed=config.seed,
    )
    decoder = train_probe(train.features[block], train.targets(config.side), training)
    scores = SegmentationScores()
    start = 0
    for logits in probe_logits(decoder, score.features[block]):
        end = start + len(logits)
        masks = score.masks[start:end]
        resized = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        scores.update(resized, masks, image_ids=score.image_ids[start:end])
        start = end
    counted = scores.compute(resamples=config.bootstrap)
    _, channels, height, width = score.features[block].shape
    return CellScore(
        block=block,
        timestep=timestep,
        ap=counted.ap.value,
        low=counted.ap.low,
        high=counted.ap.high,
        miou=counted.miou.best.value,
        phrases=len(score.masks),
        channels=channels,
        height=height,
        width=width,
    )


def cell_file(folder: Path, *, timestep: int) -> Path:
    """Where one timestep's scores are kept."""
    return folder / f"t{timestep:04d}.json"
