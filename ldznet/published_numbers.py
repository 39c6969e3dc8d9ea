"""Figures that papers report, to print beside ours where data set and split are theirs.

Source: "LD-ZNet: A Latent Diffusion Approach for Text-Based Image Segmentation" (ICCV 2023), its tables; rows of
other systems are as quoted there. All scores in percent.
"""

from dataclasses import dataclass
from typing import Literal

DataSet = Literal["phrasecut", "aigi", "refcoco", "refcoco+", "refcocog"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedScores:
    """One row of a published table. None where the paper gives no figure."""

    system: str
    data_set: DataSet
    split: str | None  # None where no source names one
    miou: float | None = None  # LD-ZNet and its baselines: at the best threshold on the test set itself
    iou_fg: float | None = None  # the same
    ap: float | None = None
    iou: float | None = None  # referring sets: the paper says "IoU"; mean or overall is unconfirmed
    trained_on: str | None = None  # where the source says so
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedTime:
    """Time of one image on an NVIDIA RTX A6000."""

    system: str
    milliseconds: float


def _phrasecut(
    system: str, miou: float, iou_fg: float | None = None, ap: float | None = None, note: str = ""
) -> PublishedScores:
    return PublishedScores(
        system=system, data_set="phrasecut", split="test", miou=miou, iou_fg=iou_fg, ap=ap, note=note
    )


def _aigi(system: str, miou: float, ap: float) -> PublishedScores:
    return PublishedScores(system=system, data_set="aigi", split="test", miou=miou, ap=ap)


def _referring(system: str, *scores: tuple[float, float]) -> tuple[PublishedScores, ...]:
    sets: tuple[DataSet, ...] = ("refcoco", "refcoco+", "refcocog")
    return tuple(
        PublishedScores(system=system, data_set=name, split=None, iou=iou, ap=ap, trained_on="PhraseCut only")
        for name, (iou, ap) in zip(sets, scores, strict=True)
    )


_CLIPSEG_THRESHOLD = "threshold fixed at 0.3"

PUBLISHED: tuple[PublishedScores, ...] = (
    _phrasecut("HulaNet", 41.3, 50.8),
    _phrasecut("Mask-RCNN Top", 39.4, 47.4),
    _phrasecut("CLIPSeg (PC+)", 43.4, 54.7, 76.7, _CLIPSEG_THRESHOLD),
    _phrasecut("CLIPSeg (PC, D=128)", 48.2, 56.5, 78.2, _CLIPSEG_THRESHOLD),
    _phrasecut("RGBNet", 46.7, 56.2, 77.2),
    _phrasecut("ZNet", 51.3, 59.0, 78.7),
    _phrasecut("LD-ZNet", 52.7, 60.0, 78.9),
    _phrasecut("LD-ZNet with concat", 50.2, 59.0, 78.1),
    _phrasecut("MDETR", 53.7),
    _phrasecut("GLIPv2-T", 59.4),
    _aigi("MDETR", 53.4, 63.8),
    _aigi("CLIPSeg (PC+)", 56.4, 79.0),
    _aigi("SEEM", 57.4, 70.0),
    _aigi("RGBNet", 63.4, 84.1),
    _aigi("ZNet", 68.4, 85.0),
    _aigi("LD-ZNet", 74.1, 89.6),
    *_referring("CLIPSeg", (30.1, 14.1), (30.3, 15.5), (33.8, 23.7)),
    *_referring("RGBNet", (36.3, 15.7), (37.1, 16.7), (41.9, 27.8)),
    *_referring("ZNet", (40.1, 16.8), (40.9, 17.8), (47.1, 29.2)),
    *_referring("LD-ZNet", (41.0, 17.2), (42.5, 18.6), (47.8, 30.8)),
)

PUBLISHED_TIMES: tuple[PublishedTime, ...] = (
    PublishedTime(system="RGBNet", milliseconds=62),
    PublishedTime(system="ZNet", milliseconds=55),
    PublishedTime(system="LD-ZNet", milliseconds=101),
    PublishedTime(system="SEEM", milliseconds=293),
)


def published_scores(data_set: str, split: str) -> tuple[PublishedScores, ...]:
    """The published rows for a data set and split; none where they are not the paper's.

    AIGI is all test. No source says which split of the referring sets the paper used, so none of theirs matches.
    """
    return tuple(row for row in PUBLISHED if (row.data_set, row.split) == (data_set.lower(), split.lower()))
