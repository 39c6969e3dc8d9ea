"""Segmentation scores in one streamed pass: CLIPSeg's protocol, PhraseCut's and the referring sets' own."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldznet.errors import UserError
from ldznet.score_bins import ThresholdBins
from ldznet.score_figures import Figures, FigureTable
from ldznet.score_intervals import Float, PhraseCounts, per_image, resampled, totals_of
from ldznet.score_results import ScoreCurve, Scores, StandardScores

THRESHOLDS: tuple[float, ...] = tuple(step / 50 for step in range(1, 50))  # 0.02, 0.04 … 0.98
FIXED_THRESHOLD = 0.3  # CLIPSeg's rows; where no validation set chose one
_FIRST_ROWS = 256
_SAME_THRESHOLD = 1e-6
_Counted = tuple[NDArray[np.int64], NDArray[np.int64]]  # positives B,2,T; foreground B


class SegmentationScores:
    """Counts pixels phrase by phrase and computes all scores of a data set from the counts.

    Kept a phrase: true and false positives at each threshold, foreground, size and image, as uint32
    (404 bytes at 49 thresholds). Kept an image: its name.

    Args:
        thresholds: On the sigmoid, ascending inside (0, 1). CLIPSeg's 0.02 … 0.98 unless told.
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.thresholds = tuple(float(value) for value in thresholds)
        self._bins = ThresholdBins(self.thresholds)
        self._rows = np.empty((_FIRST_ROWS, 2 * len(self.thresholds) + 3), dtype=np.uint32)
        self._phrases = 0
        self._image_ids: list[str] = []  # "" for a phrase that was given no image: an image of its own
        self._image_numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Phrases counted so far."""
        return self._phrases

    def update(
        self,
        logits: Tensor,
        masks: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        """Count a batch.

        Args:
            logits: `B,1,H,W`, any float type, any device. H and W may differ from one call to the next.
            masks: `B,1,H,W`, the truth: bool, integer (non-zero is foreground) or float (above 0.5 is).
            image_ids: B names; phrases of one image share one, and intervals are taken over images. Without
                names each phrase stands for an image of its own.
            weight: B numbers, 1 for a phrase that counts, 0 for padding.

        Raises:
            ValueError: Shapes that do not fit, a logit that is not a number, or a weight other than 0 and 1.
        """
        self._update(logits, masks, image_ids=image_ids, weight=weight, activation=torch.sigmoid)

    def update_probabilities(
        self,
        probabilities: Tensor,
        masks: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        """As `update`, from probabilities in [0, 1].

        A bool tensor is taken too: a mask that another system made, the same at every threshold.
        """
        self._update(probabilities, masks, image_ids=image_ids, weight=weight, activation=None)

    def _update(
        self,
        values: Tensor,
        masks: Tensor,
        *,
        image_ids: Sequence[str] | None,
        weight: Tensor | Sequence[float] | None,
        activation: Callable[[Tensor], Tensor] | None,
    ) -> None:
        if values.shape != masks.shape or values.ndim != 4 or values.shape[1] != 1:
            raise ValueError(
                "scores take predictions and masks of one shape B,1,H,W, not "
                f"{tuple(values.shape)} and {tuple(masks.shape)}"
            )
        counts = _counting(weight, len(values))
        names = [""] * len(values) if image_ids is None else [str(name) for name in image_ids]
        if len(names) != len(values) or (image_ids is not None and not all(names)):
            raise ValueError(f"scores need one non-empty image id for each of the {len(values)} phrases")
        kept = np.flatnonzero(counts).tolist()
        if len(kept) < len(values):
            values, masks, names = values[kept], masks[kept], [names[place] for place in kept]
        # One phrase at a time on a CPU, where it then stays in cache; the whole batch at once on a device.
        step = 1 if values.device.type == "cpu" else max(1, len(values))
        parts = [
            self._count(values[start : start + step], masks[start : start + step], activation)
            for start in range(0, len(values), step)
        ]
        if parts:
            positives, foreground = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            self._append(positives, foreground, values[0].numel(), names)

    def _count(
        self, values: Tensor, masks: Tensor, activation: Callable[[Tensor], Tensor] | None
    ) -> _Counted:
        flat = values.detach().float().flatten(1)  # B,1,H,W -> B,HW
        if activation is not None:
            flat = activation(flat)
        truth = masks
        if masks.dtype != torch.bool:
            truth = masks > 0.5 if masks.is_floating_point() else masks != 0
        truth = truth.to(flat.device).flatten(1)
        low, high = flat.aminmax()
        if not (low >= 0 and high <= 1):  # true of NaN as well
            raise ValueError("scores: a prediction is not a number or lies outside [0, 1]")
        return self._bins.count(flat, truth).cpu().numpy(), truth.sum(1).cpu().numpy()

    def _append(
        self, positives: NDArray[np.int64], foreground: NDArray[np.int64], pixels: int, names: Sequence[str]
    ) -> None:
        rows = self._room(len(names))
        levels = len(self.thresholds)
        rows[:, :levels] = positives[:, 1]
        rows[:, levels : 2 * levels] = positives[:, 0]
        rows[:, 2 * levels] = foreground
        rows[:, 2 * levels + 1] = pixels
        rows[:, 2 * levels + 2] = [self._image_number(name) for name in names]

    def _room(self, phrases: int) -> NDArray[np.uint32]:
        """The next `phrases` rows, now counted as filled."""
        needed = self._phrases + phrases
        if needed > len(self._rows):
            grown = np.empty((max(needed, len(self._rows) * 3 // 2), self._rows.shape[1]), dtype=np.uint32)
            grown[: self._phrases] = self._rows[: self._phrases]
            self._rows = grown
        rows = self._rows[self._phrases : needed]
        self._phrases = needed
        return rows

    def _image_number(self, name: str) -> int:
        number = self._image_numbers.get(name, len(self._image_ids)) if name else len(self._image_ids)
        if number == len(self._image_ids):
            self._image_ids.append(name)
            if name:
                self._image_numbers[name] = number
        return number

    def merge(self, other: "SegmentationScores") -> None:
        """Add what another accumulator, another rank's, counted. Images are matched by name."""
        if other.thresholds != self.thresholds:
            raise ValueError("scores over different thresholds do not merge")
        numbers = np.array([self._image_number(name) for name in other._image_ids], dtype=np.uint32)  # noqa: SLF001 - of the same class
        theirs = other._rows[: len(other)].copy()  # noqa: SLF001
        theirs[:, -1] = numbers[theirs[:, -1]]
        self._room(len(theirs))[:] = theirs

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything counted, as plain arrays: to gather from ranks or to keep."""
        return {
            "thresholds": np.asarray(self.thresholds, dtype=np.float64),
            "counts": self._rows[: self._phrases].copy(),
            "image_ids": np.asarray(self._image_ids, dtype=np.str_),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> "SegmentationScores":
        """The accumulator that `state` was taken from."""
        scores = cls(state["thresholds"].tolist())
        for name in state["image_ids"].tolist():
            scores._image_number(name)
        counts = state["counts"]
        scores._room(len(counts))[:] = counts
        return scores

    def phrase_ious(self, threshold: float = 0.5) -> Float:
        """Standard IoU of each phrase in the order counted, at one of the thresholds: `N`."""
        counts, index = self._counts(), self.threshold_index(threshold)
        hit = counts.true_positives[:, index].astype(np.float64)
        union = counts.foreground.astype(np.float64) + counts.false_positives[:, index]
        return np.divide(hit, union, out=np.zeros_like(hit), where=union > 0)

    def compute(
        self,
        *,
        val_threshold: float | None = None,
        fixed_threshold: float = FIXED_THRESHOLD,
        standard_threshold: float = 0.5,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Scores:
        """All scores of what was counted.

        Args:
            val_threshold: The threshold that scored best on the validation set: its `miou.best.threshold`.
            fixed_threshold: CLIPSeg's rows use 0.3.
            standard_threshold: Where PhraseCut's and the referring sets' own scores are taken. 0.5, the usual
                cut of a sigmoid; no source names the paper's.
            resamples: Bootstrap resamples over images for the 95 % intervals; 0 for none.
            seed: Of the bootstrap.

        Raises:
            UserError: Nothing was counted, or a threshold that is not among those counted at.
        """
        if not self._phrases:
            raise UserError("no phrase was scored: the split is empty or all its samples were left out")
        standard, fixed = self.threshold_index(standard_threshold), self.threshold_index(fixed_threshold)
        val = None if val_threshold is None else self.threshold_index(val_threshold)
        whole, spread = self.bootstrap(resamples=resamples, seed=seed, standard_threshold=standard_threshold)
        table = FigureTable(self.thresholds, whole, spread if resamples else None)
        return Scores(
            phrases=self._phrases,
            images=len(self._image_ids),
            resamples=resamples,
            miou=table.thresholded("miou", fixed=fixed, val=val),
            iou_fg=table.thresholded("iou_fg", fixed=fixed, val=val),
            ap=table.score("ap"),
            standard=StandardScores(
                threshold=self.thresholds[standard],
                mean_iou=table.score("standard_mean_iou"),
                overall_iou=table.score("standard_overall_iou"),
                precision_at=table.levels("precision_at"),
                precision_above=table.levels("precision_above"),
            ),
            curve=ScoreCurve(
                thresholds=self.thresholds,
                **{
                    name: tuple(getattr(whole, name)[0].tolist())
                    for name in ("miou", "iou_fg", "iou_binary", "precision", "recall")
                },
            ),
        )

    def bootstrap(
        self, *, resamples: int, seed: int, standard_threshold: float = 0.5
    ) -> tuple[Figures, Figures]:
        """The figures of what was counted, and those of its resamples over images.

        Equal seeds draw equal images from sets of as many.
        """
        index = self.threshold_index(standard_threshold)
        sums, widths = per_image(self._counts(), standard_index=index)
        drawn = [sums[:0], *resampled(sums, resamples=resamples, seed=seed)]
        return (
            Figures(totals_of(sums.sum(0, keepdims=True), widths)),
            Figures(totals_of(np.concatenate(drawn), widths)),
        )

    def same_phrases(self, other: "SegmentationScores") -> bool:
        """Whether both counted the same phrases, by image and truth, in the same order at the same thresholds."""
        truth = slice(-3, None)  # foreground, pixels, image
        ours, theirs = self._rows[: len(self), truth], other._rows[: len(other), truth]  # noqa: SLF001
        same_images = self._image_ids == other._image_ids  # noqa: SLF001
        return self.thresholds == other.thresholds and same_images and np.array_equal(ours, theirs)

    def threshold_index(self, threshold: float) -> int:
        """The column of a threshold.

        Raises:
            UserError: it is not among those counted at.
        """
        distance = np.abs(np.asarray(self.thresholds) - threshold)
        index = int(distance.argmin())
        if distance[index] > _SAME_THRESHOLD:
            raise UserError(
                f"threshold {threshold:g} was not counted at; the nearest is {self.thresholds[index]:g}"
            )
        return index

    def _counts(self) -> PhraseCounts:
        rows, levels = self._rows[: self._phrases], len(self.thresholds)
        return PhraseCounts(
            true_positives=rows[:, :levels],
            false_positives=rows[:, levels : 2 * levels],
            foreground=rows[:, 2 * levels],
            pixels=rows[:, 2 * levels + 1],
            image=rows[:, 2 * levels + 2],
            images=len(self._image_ids),
        )


def _counting(weight: Tensor | Sequence[float] | None, samples: int) -> NDArray[np.bool_]:
    if weight is None:
        return np.ones(samples, dtype=np.bool_)
    given = (
        weight.detach().float().cpu().numpy()
        if isinstance(weight, Tensor)
        else np.asarray(weight, dtype=float)
    )
    if given.shape != (samples,) or not np.isin(given, (0.0, 1.0)).all():
        raise ValueError(f"scores take {samples} weights of 0 (padding) or 1, each sample counted once")
    return given == 1.0
