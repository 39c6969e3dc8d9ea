"""What a report tells: filled in by the job that ran, laid out by `pipeline.report.page`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldznet.score_results import Scores
from pipeline.pictures import Curve

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkScores:
    """The scores of one network on one split. Where data set and split are the paper's, its rows stand beside it."""

    network: str
    data_set: str
    split: str
    scores: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveChart:
    """Curves of several runs in one chart."""

    title: str
    y_label: str
    curves: tuple[Curve, ...]
    x_label: str = "step"
    log_scale: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One phrase to look at. Masks may be smaller than the image."""

    phrase: str
    image: Image.Image
    truth: Mask  # h,w
    predictions: Mapping[str, Mask]  # network -> h,w
    group: str = ""  # such as the data set, or the style of the scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of the run and how long it took."""

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Something to type next."""

    purpose: str
    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LdmFacts:
    """The frozen latent diffusion model."""

    source: str
    digest: str
    untrained: bool  # the project's own miniature with random weights


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportContent:
    """Everything on the page. Empty parts are left out of it."""

    title: str
    summary: str  # a sentence or two: what was done, and what to see
    created: datetime
    ldm: LdmFacts
    machine: Mapping[str, str] = field(default_factory=dict)  # as `pipeline.report.machine` gives it
    versions: Mapping[str, str] = field(default_factory=dict)
    caches: Mapping[str, str] = field(default_factory=dict)  # set -> cache key
    samples: Mapping[str, int] = field(default_factory=dict)  # set -> samples
    stages: tuple[Stage, ...] = ()
    scores: tuple[NetworkScores, ...] = ()
    charts: tuple[CurveChart, ...] = ()
    examples: tuple[Example, ...] = ()
    quarantine: Mapping[str, int] | None = None  # reason -> samples; None where nothing was precomputed
    commands: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()
