"""Evaluation: a network's scores on a cached set, each sample counted once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldznet.scores import SegmentationScores
from pipeline.batch import Batch
from pipeline.loader import CacheLoader
from pipeline.sample_order import Position

Predict = Callable[[Batch], Tensor]  # batch -> logits B,1,H,W


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A phrase with its truth and a prediction, to look at."""

    key: str
    phrase: str
    image: NDArray[np.uint8] | None  # H,W,3
    truth: NDArray[np.bool_]  # H,W
    probability: NDArray[np.float32]  # H,W


def score_set(
    predict: Predict, *, loader: CacheLoader, examples: int = 0
) -> tuple[SegmentationScores, list[Example]]:
    """Score every sample of a loader's share once; keep the first `examples` as pictures.

    Run on several ranks, each scores its share; `SegmentationScores.merge` makes one of them.
    """
    scores = SegmentationScores()
    kept: list[Example] = []
    for batch in loader.epoch(Position()):
        logits = predict(batch).float().cpu()
        counted = batch.weight > 0
        images = [
            str(facts["image_digest"])
            for facts, counts in zip(batch.facts, counted.tolist(), strict=True)
            if counts
        ]
        scores.update(logits[counted], batch.masks[counted], image_ids=images)
        if len(kept) < examples:
            kept.extend(_examples(batch, logits))
    return scores, kept[:examples]


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


def _examples(batch: Batch, logits: Tensor) -> list[Example]:
    probabilities = torch.sigmoid(logits)[:, 0].numpy()  # B,1,H,W -> B,H,W
    truths = batch.masks[:, 0].numpy() > 0
    images = None
    if batch.images is not None:
        images = (
            ((batch.images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        )  # B,H,W,3
    return [
        Example(
            key=batch.keys[row],
            phrase=str(batch.facts[row]["phrase"]),
            image=None if images is None else images[row],
            truth=truths[row],
            probability=probabilities[row],
        )
        for row in range(len(batch.keys))
        if batch.weight[row] > 0
    ]
