"""Evaluation: predictions scored on a cached set, each sample counted once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldznet.errors import FinalError
from ldznet.scores import SegmentationScores
from pipeline.evaluation.original_samples import OriginalSamples
from pipeline.evaluation.probability_maps import LogitMaps, ProbabilityMaps
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position
from pipeline.loading.source import BatchSource

Predict = Callable[[Batch], Tensor]  # batch -> logits B,1,H,W
PredictMaps = Callable[[Batch], ProbabilityMaps]
# `clipseg`: photo and mask squashed to the network's size. `original`: at the photo's own size.
Protocol = Literal["clipseg", "original"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A phrase with its truth and a prediction, to look at."""

    key: str
    phrase: str
    image: NDArray[np.uint8] | None  # H,W,3
    truth: NDArray[np.bool_]  # H,W
    probability: NDArray[np.float32]  # H,W


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredPhrase:
    """A phrase that was scored, by its names in the cache and in the data set."""

    key: str
    label_id: str
    image_id: str
    phrase: str


@dataclass(kw_only=True, slots=True)
class ScoredSet:
    """What scoring one set gave."""

    scores: dict[Protocol, SegmentationScores]
    examples: list[Example] = field(default_factory=list)
    phrases: list[ScoredPhrase] = field(default_factory=list)  # in the order scored
    seconds: float = 0.0  # of predicting alone


def score_set(
    predict: Predict, *, loader: BatchSource, examples: int = 0
) -> tuple[SegmentationScores, list[Example]]:
    """Score a network on every sample of a loader's share once; keep the first `examples` as pictures.

    Run on several ranks, each scores its share; `SegmentationScores.merge` makes one of them.
    """
    scored = score_protocols(
        lambda batch: LogitMaps(predict(batch)), loader=loader, protocols=("clipseg",), examples=examples
    )
    return scored.scores["clipseg"], scored.examples


def score_protocols(
    predict: PredictMaps,
    *,
    loader: BatchSource,
    protocols: Sequence[Protocol],
    originals: OriginalSamples | None = None,
    examples: int = 0,
) -> ScoredSet:
    """Score every sample of a loader's share once, under several protocols at a time.

    Args:
        predict: what is scored.
        loader: of the set.
        protocols: how truth and prediction are compared.
        originals: the set's photos and masks at their own size; for the protocol `original`.
        examples: how many of the first samples to keep as pictures.

    Raises:
        UserError: the data set is needed, and is away or has changed.
        FinalError: a prediction is not a number.
    """
    scored = ScoredSet(scores={protocol: SegmentationScores() for protocol in protocols})
    for batch in loader.epoch(Position()):
        started = time.perf_counter()
        maps = predict(batch)
        scored.seconds += time.perf_counter() - started
        for row in np.flatnonzero(batch.weight.numpy() > 0).tolist():
            facts = batch.facts[row]
            cached = batch.masks[row, 0].numpy() > 0  # S,S
            scored.phrases.append(
                ScoredPhrase(
                    key=batch.keys[row],
                    label_id=str(facts["label_id"]),
                    image_id=str(facts["image_id"]),
                    phrase=str(facts["phrase"]),
                )
            )
            image = str(facts["image_digest"])
            for protocol, scores in scored.scores.items():
                truth = cached
                if protocol == "original":
                    assert originals is not None, "the protocol needs the original samples"
                    truth = originals.mask(facts, cached)
                probabilities = maps.at(row, height=truth.shape[0], width=truth.shape[1])
                if not bool(torch.isfinite(probabilities).all()):
                    raise FinalError(
                        f"the prediction for {facts['phrase']!r} (sample {batch.keys[row]}) is no number: the "
                        "network's weights are broken"
                    )
                scores.update_probabilities(
                    probabilities, torch.from_numpy(truth)[None, None], image_ids=[image]
                )
            if len(scored.examples) < examples:
                scored.examples.append(_example(batch, row, maps))
    return scored


def network_predictor(network: nn.Module, *, device: torch.device) -> Predict:
    """A network in evaluation mode as a function of a batch."""
    network.eval().to(device)

    def predict(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return run_network(network, batch.to(device, torch.float32))

    return predict


def run_network(network: nn.Module, batch: Batch) -> Tensor:
    """Call a network of any kind on a batch: logits `B,1,H,W`."""
    logits: Tensor = network(
        latents=batch.latents, context=batch.context, features=batch.features, images=batch.images
    )
    return logits


def _example(batch: Batch, row: int, maps: ProbabilityMaps) -> Example:
    truth = batch.masks[row, 0].numpy() > 0
    image = None
    if batch.images is not None:
        shades = ((batch.images[row] + 1) * 127.5).round().clamp(0, 255).byte()
        image = shades.permute(1, 2, 0).numpy()  # 3,H,W -> H,W,3
    probability = maps.at(row, height=truth.shape[0], width=truth.shape[1])[0, 0]
    return Example(
        key=batch.keys[row],
        phrase=str(batch.facts[row]["phrase"]),
        image=image,
        truth=truth,
        probability=probability.float().numpy(),
    )
