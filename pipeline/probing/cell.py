"""One timestep of a probe: a decoder for each block, trained and scored. Knows nothing of Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ldznet.config import Config
from ldznet.errors import FinalError
from ldznet.probe import ProbeDecoder, ProbeTraining, probe_logits, train_probe
from ldznet.score_results import Score, Scores
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
    ap: Score
    control: Score | None = None  # AP of the same decoder on a set with untrue phrases
    miou: float  # at the best threshold on the scored set
    phrases: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRows:
    """Rows of each set's index that hold one timestep, in the order of `ProbeConfig.sets`."""

    timestep: int
    rows: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedCache:
    """The cache and the manifest of each set, in the order of `ProbeConfig.sets`."""

    url: str
    manifests: tuple[Manifest, ...]


def probe_timestep(
    cache: ProbedCache, cell: CellRows, *, blocks: tuple[int, ...], config: ProbeConfig
) -> list[CellScore]:
    """Train and score a decoder a block. Each is a pure function of features, masks and configuration."""
    torch.set_num_threads(config.threads)
    store = open_store(cache.url)
    train, *scored = [
        ProbeSamples.read(SampleReader(store=store, manifest=manifest), rows, blocks=blocks)
        for manifest, rows in zip(cache.manifests, cell.rows, strict=True)
    ]
    return [_probe_block(train, scored, block, timestep=cell.timestep, config=config) for block in blocks]


def _probe_block(
    train: ProbeSamples,
    scored: Sequence[ProbeSamples],
    block: int,
    *,
    timestep: int,
    config: ProbeConfig,
) -> CellScore:
    training = ProbeTraining(
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        hidden=config.hidden,
        seed=config.seed,
    )
    decoder = train_probe(train.features[block], train.targets(config.side), training)
    counted, *control = [_scores(decoder, samples, block, config=config) for samples in scored]
    features = scored[0].features[block]
    _, channels, height, width = features.shape
    return CellScore(
        block=block,
        timestep=timestep,
        ap=counted.ap,
        control=control[0].ap if control else None,
        miou=counted.miou.best.value,
        phrases=len(features),
        channels=channels,
        height=height,
        width=width,
    )


def _scores(decoder: ProbeDecoder, samples: ProbeSamples, block: int, *, config: ProbeConfig) -> Scores:
    scores = SegmentationScores()
    start = 0
    for logits in probe_logits(decoder, samples.features[block]):
        end = start + len(logits)
        if not bool(torch.isfinite(logits).all()):
            raise FinalError(
                f"the probe of block {block} gives what is no number: its training went astray; "
                f"lower probe.lr={config.lr:g}"
            )
        masks = samples.masks[start:end]
        resized = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        scores.update(resized, masks, image_ids=samples.image_ids[start:end])
        start = end
    return scores.compute(resamples=config.bootstrap)


def cell_file(folder: Path, *, timestep: int) -> Path:
    """Where one timestep's scores are kept."""
    return folder / f"t{timestep:04d}.json"
