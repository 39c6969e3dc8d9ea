# ruff: noqa: T201 - a benchmark prints
"""Phrases scored a second: ours against CLIPSeg-style counting, threshold by threshold, in one run.

python tests/benchmarks/score_rate.py [phrases]
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ldznet.scores import THRESHOLDS, SegmentationScores

SIZE = 384
BATCH = 8


def example() -> tuple[Tensor, Tensor]:
    """Smooth blobs with noise: logits and masks as a network's and a data set's are, B,1,384,384."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(BATCH, 1, 24, 24, generator=generator) * 4
    smooth = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    noise = torch.randn(2, BATCH, 1, SIZE, SIZE, generator=generator)
    return smooth + 0.3 * noise[0], smooth + 2 * noise[1] > 2


def ours(logits: Tensor, masks: Tensor) -> None:
    SegmentationScores().update(logits, masks)


def by_sorting(logits: Tensor, masks: Tensor) -> None:
    """The way of CLIPSeg's evaluation: sort a phrase's pixels, then find and count at each threshold."""
    for scores, truth in zip(torch.sigmoid(logits).flatten(1), masks.flatten(1), strict=True):
        ordered = scores.sort()
        sorted_truth = truth[ordered.indices]
        for threshold in THRESHOLDS:
            above = torch.where(ordered.values > threshold)[0]
            first = int(above[0]) if len(above) else len(truth)
            sorted_truth[:first].sum().item()
            sorted_truth[first:].sum().item()


def by_comparing(logits: Tensor, masks: Tensor) -> None:
    """The plain way: compare and count at each threshold, without sorting."""
    for scores, truth in zip(torch.sigmoid(logits), masks, strict=True):
        for threshold in THRESHOLDS:
            positive = scores > threshold
            (positive & truth).sum().item()
            (positive & ~truth).sum().item()


def milliseconds(count: Callable[[Tensor, Tensor], None], batches: int) -> float:
    """Best time of a batch, for one phrase."""
    logits, masks = example()
    count(logits, masks)
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        count(logits, masks)
        times.append(time.perf_counter() - start)
    return min(times) * 1e3 / BATCH


def main() -> None:
    phrases = int(sys.argv[1]) if len(sys.argv) > 1 else 160
    torch.set_num_threads(1)
    figures = {name.__name__: milliseconds(name, max(2, phrases // BATCH)) for name in (ours,)}
    figures |= {name.__name__: milliseconds(name, 2) for name in (by_sorting, by_comparing)}
    for name, spent in figures.items():
        print(
            f"{name:14} {spent:7.3f} ms a phrase at {SIZE} px, 1 core; {spent / figures['ours']:5.1f} x ours"
        )
    print(f"14354 phrases (PhraseCut test): {figures['ours'] * 14.354:.1f} s")

    scores = SegmentationScores()
    logits, masks = example()
    for start in range(0, 14354, BATCH):
        ids = [str((start + place) // 6) for place in range(BATCH)]
        scores.update(logits[..., :8, :8], masks[..., :8, :8], image_ids=ids)
    start_time = time.perf_counter()
    result = scores.compute()
    spent = time.perf_counter() - start_time
    print(f"compute() of {result.phrases} phrases, {result.images} images, 1000 resamples: {spent:.1f} s")


if __name__ == "__main__":
    main()
