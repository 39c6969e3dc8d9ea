"""The layout of a scene: which noun stands where, how large, how turned. No pixels yet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.clipart import look, tints
from pipeline.scenes.config import ScenesConfig, Split
from pipeline.scenes.nouns import Noun, confusable, divide_nouns

_RECOLOURED = 0.8  # share of colourable nouns that a scene recolours
_MOST_ALIKE = 3  # objects of one noun
_TRIES = 12  # places looked at for an object before the freest is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One object before it is drawn. Lengths in pixels, the origin at the image's top left corner."""

    noun: Noun
    style: str
    colour: str | None  # recoloured to this, or as drawn
    side: float  # longer side of the drawing
    angle: float  # degrees, anticlockwise
    flipped: bool
    x: float
    y: float


def _choose_nouns(
    rng: np.random.Generator, config: ScenesConfig, pool: Sequence[Noun], style: str, blocked: frozenset[str]
) -> list[Noun]:
    """One noun an object; no two different nouns of a scene, nor the background, can be taken for another."""
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    colourable = [noun for noun in pool if noun.tint]
    colours = config.colours * min(1, len(colourable) / 10)  # a few nouns must not fill a small pool's scenes
    chosen: list[Noun] = []
    for _ in range(60):
        if len(chosen) == count:
            break
        if chosen and rng.random() < config.repeat:
            again = chosen[int(rng.integers(len(chosen)))]
            if chosen.count(again) < _MOST_ALIKE:
                chosen.append(again)
            continue
        drawn_from = colourable if rng.random() < colours else pool
        noun = drawn_from[int(rng.integers(len(drawn_from)))]
        free = noun not in chosen and noun.name not in blocked and not noun.kinds & blocked
        if free and not any(confusable(noun, other) for other in chosen) and look(style, noun.name):
            chosen.append(noun)
    return chosen


def _sides(
    rng: np.random.Generator, config: ScenesConfig, style: str, nouns: Sequence[Noun]
) -> list[tuple[Noun, float]]:
    """Nouns with their longer sides in pixels, the largest first, as they find room best.

    Sides are log-uniform, smaller where there are many objects, larger for thin drawings.
    """
    if not nouns:
        return []
    largest = max(config.min_scale, min(config.max_scale, 0.95 / math.sqrt(len(nouns))))
    smallest = min(largest, max(config.min_scale, 0.48 / math.sqrt(len(nouns))))
    sides = []
    for noun in nouns:
        scale = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        drawing = look(style, noun.name)
        fill = drawing.fill if drawing else 1.0
        slimness = min(1.6, max(1.0, math.sqrt(0.5 / fill)))
        sides.append(min(scale * slimness, max(largest, 0.6)) * config.size)
    return sorted(zip(nouns, sides, strict=True), key=lambda pair: -pair[1])


def _colours(rng: np.random.Generator, style: str, nouns: Sequence[Noun]) -> list[str | None]:
    """A colour for every object of a recoloured noun; either all objects of a noun bear one or none does."""
    recoloured: dict[Noun, bool] = {}
    colours: list[str | None] = []
    for noun in nouns:
        choices = tints(style, noun.name) if noun.tint else ()
        if noun not in recoloured:
            recoloured[noun] = bool(choices) and rng.random() < _RECOLOURED
        colours.append(choices[int(rng.integers(len(choices)))] if recoloured[noun] else None)
    return colours


def _place(rng: np.random.Generator, size: int, sides: Sequence[float]) -> list[tuple[float, float]]:
    """Centres: of a few random places the one that touches its neighbours least, or, now and then, any."""
    placed: list[tuple[float, float, float]] = []
    for side in sides:
        margin = min(0.5 * size, 0.46 * side)
        candidates = rng.uniform(margin, size - margin + 1e-6, size=(_TRIES, 2))
        best = candidates[0]
        if rng.random() > 0.2:
            cost = np.zeros(_TRIES)
            for x, y, other in placed:
                gap = np.hypot(candidates[:, 0] - x, candidates[:, 1] - y)
                cost += np.maximum(0, 0.45 * (side + other) - gap)
            best = candidates[int(cost.argmin())]
        placed.append((float(best[0]), float(best[1]), side))
    return [(x, y) for x, y, _ in placed]


def plan_layout(
    rng: np.random.Generator, config: ScenesConfig, *, split: Split, blocked: frozenset[str]
) -> list[Placement]:
    """The objects of one scene, back to front.

    Args:
        rng: The scene's own generator.
        config: The data set.
        split: Decides styles and nouns.
        blocked: Nouns and kinds that the background shows.
    """
    seen, held_out = divide_nouns(limit=config.nouns, held_out=config.held_out_nouns)
    pool = held_out if split == "held_out" else seen
    styles = config.styles_of(split)
    style = styles[int(rng.integers(len(styles)))]
    nouns = _choose_nouns(rng, config, pool, style, blocked)
    sized = _sides(rng, config, style, nouns)
    colours = _colours(rng, style, [noun for noun, _ in sized])
    centres = _place(rng, config.size, [side for _, side in sized])
    placements = []
    for (noun, side), colour, (x, y) in zip(sized, colours, centres, strict=True):
        angle = float(np.clip(rng.normal(0, 9), -25, 25))
        flipped = bool(rng.random() < 0.5) and noun.mirrored
        placements.append(
            Placement(
                noun=noun, style=style, colour=colour, side=side, angle=angle, flipped=flipped, x=x, y=y
            )
        )
    return sorted(placements, key=lambda place: place.y + place.side / 2)  # what stands lower is nearer
