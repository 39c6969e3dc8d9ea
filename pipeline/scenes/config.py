"""What a scenes data set is made from: one frozen object, and which split may show what."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from ldznet.config import Config

Split = Literal["train", "val", "test", "foreign_train", "foreign_val", "foreign", "held_out"]
PhraseKind = Literal["name", "group", "position", "size", "colour"]
SPLITS: tuple[Split, ...] = get_args(Split)
KNOWN_STYLES = ("noto", "twemoji", "fluent-emoji-flat")


class SceneCounts(Config):
    """Scenes a split. `held_out` shows seen styles with the nouns that no other split shows."""

    train: int = Field(default=400, ge=0)
    val: int = Field(default=60, ge=0)
    test: int = Field(default=100, ge=0)
    foreign_train: int = Field(default=0, ge=0)
    foreign_val: int = Field(default=0, ge=0)
    foreign: int = Field(default=100, ge=0)
    held_out: int = Field(default=0, ge=0)

    def of(self, split: Split) -> int:
        """The number of scenes of one split."""
        count: int = getattr(self, split)
        return count


class ScenesConfig(Config):
    """Everything that decides a scene's pixels, masks and words. Shares are probabilities in [0, 1]."""

    seed: int = Field(default=0, ge=0)
    size: int = Field(default=256, ge=64, le=1024)  # pixels a side
    counts: SceneCounts = SceneCounts()
    styles: tuple[str, ...] = ("noto", "twemoji")  # train, val, test, held_out
    foreign_styles: tuple[str, ...] = ("fluent-emoji-flat",)  # foreign, foreign_train, foreign_val
    nouns: int | None = Field(default=None, ge=8)  # the first N nouns, the everyday ones first; None: all
    held_out_nouns: int = Field(default=0, ge=0)  # of these, shown in the split `held_out` only
    min_objects: int = Field(default=2, ge=1, le=8)
    max_objects: int = Field(default=6, ge=1, le=8)
    min_scale: float = Field(default=0.22, gt=0.05, le=1)  # an object's side in image sides
    max_scale: float = Field(default=0.55, gt=0.05, le=1)
    min_visible: float = Field(default=0.4, gt=0, le=1)  # of an object's own pixels; below it is left out
    min_area: float = Field(default=0.004, ge=0, lt=0.1)  # of the image; below it is left out
    repeat: float = Field(default=0.25, ge=0, le=1)  # share of objects whose noun the scene already has
    colours: float = Field(
        default=0.2, ge=0, le=1
    )  # share of new nouns drawn from those that take any colour
    photos: float = Field(default=0.5, ge=0, le=1)  # share of photo backgrounds, where photos are installed
    shadows: float = Field(default=0.6, ge=0, le=1)  # share of scenes whose objects throw a soft shadow
    more_phrases: float = Field(default=0.35, ge=0, le=1)  # share of single objects with a second phrase
    phrase_kinds: tuple[PhraseKind, ...] = get_args(PhraseKind)
    jpeg_quality: int = Field(default=95, ge=50, le=100)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        unknown = {*self.styles, *self.foreign_styles} - set(KNOWN_STYLES)
        if unknown:
            raise ValueError(f"unknown style {min(unknown)!r}: known are {', '.join(KNOWN_STYLES)}")
        if not self.styles:
            raise ValueError("styles: name at least one")
        shared = set(self.styles) & set(self.foreign_styles)
        if shared:
            raise ValueError(f"style {min(shared)!r} is both seen and foreign: take it out of one of the two")
        counts = self.counts
        if not self.can_show("foreign") and counts.foreign + counts.foreign_train + counts.foreign_val:
            raise ValueError("foreign scenes need at least one foreign style")
        if self.min_objects > self.max_objects or self.min_scale > self.max_scale:
            raise ValueError("min_objects and min_scale must not exceed max_objects and max_scale")
        if counts.held_out and not self.can_show("held_out"):
            least = self._fewest_held_out_nouns
            raise ValueError(f"counts.held_out needs held_out_nouns of {least} or more, to fill a scene")
        if self.nouns is not None and self.nouns - self.held_out_nouns < 8:
            raise ValueError("nouns must leave 8 or more beside held_out_nouns")
        if not self.phrase_kinds:
            raise ValueError("phrase_kinds: name at least one")
        return self

    @property
    def _fewest_held_out_nouns(self) -> int:
        return max(2, self.max_objects)

    def can_show(self, split: Split) -> bool:
        """Whether there are styles and nouns for scenes of a split."""
        enough = split != "held_out" or self.held_out_nouns >= self._fewest_held_out_nouns
        return enough and bool(self.styles_of(split))

    def styles_of(self, split: Split) -> tuple[str, ...]:
        """The drawing styles that a split may show."""
        return self.foreign_styles if split.startswith("foreign") else self.styles


def holds_out_photos(split: Split) -> bool:
    """True for the splits that show the photos which no training split shows."""
    return split not in {"train", "foreign_train"}
