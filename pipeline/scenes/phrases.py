"""What may truly be said of a scene: phrases that name exactly the pixels of their mask, and a caption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.config import PhraseKind, ScenesConfig
from pipeline.scenes.nouns import Noun

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_GAP = 0.08  # of the image: how much further out "the leftmost" must be than the next
_LARGER = 1.4  # how much more area "the largest" must have than the next


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One visible object. Positions are of the visible pixels' centroid, in image sides from the top left."""

    noun: Noun
    colour: str | None
    mask: NDArray[np.bool_]  # H,W visible pixels
    whole_area: int  # pixels with nothing in front and nothing beyond the edge
    visible_area: int
    x: float
    y: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """A phrase and the mask of all that it names."""

    text: str
    mask: NDArray[np.bool_]  # H,W
    kind: PhraseKind
    noun: str


# A region: its words, where an object surely lies in it, and where it could be said to. The phrase is used
# where exactly one object of the noun could be meant, and that one surely is.
_Region = tuple[str, Callable[[float, float], bool], Callable[[float, float], bool]]
_REGIONS: tuple[_Region, ...] = (
    ("on the left", lambda x, _: x < 0.37, lambda x, _: x < 0.5),
    ("on the right", lambda x, _: x > 0.63, lambda x, _: x > 0.5),
    ("at the top", lambda _, y: y < 0.37, lambda _, y: y < 0.5),
    ("at the bottom", lambda _, y: y > 0.63, lambda _, y: y > 0.5),
    ("in the top left corner", lambda x, y: max(x, y) < 0.36, lambda x, y: max(x, y) < 0.5),
    ("in the top right corner", lambda x, y: max(1 - x, y) < 0.36, lambda x, y: max(1 - x, y) < 0.5),
    ("in the bottom left corner", lambda x, y: max(x, 1 - y) < 0.36, lambda x, y: max(x, 1 - y) < 0.5),
    (
        "in the bottom right corner",
        lambda x, y: max(1 - x, 1 - y) < 0.36,
        lambda x, y: max(1 - x, 1 - y) < 0.5,
    ),
    (
        "in the middle",
        lambda x, y: max(abs(x - 0.5), abs(y - 0.5)) < 0.1,
        lambda x, y: max(abs(x - 0.5), abs(y - 0.5)) < 0.22,
    ),
)
_EXTREMES: tuple[tuple[str, Callable[[SceneObject], float]], ...] = (
    ("leftmost", lambda thing: -thing.x),
    ("rightmost", lambda thing: thing.x),
    ("highest", lambda thing: -thing.y),
    ("lowest", lambda thing: thing.y),
)


def regions(thing: SceneObject, others: Sequence[SceneObject]) -> list[str]:
    """Words for where the object is that are true of it and of no other object of its noun."""
    return [
        words
        for words, surely, perhaps in _REGIONS
        if surely(thing.x, thing.y) and not any(perhaps(other.x, other.y) for other in others)
    ]


def _sizes(thing: SceneObject, others: Sequence[SceneObject]) -> list[str]:
    """Comparatives or superlatives of size, true of the whole and of the visible areas alike."""
    larger, smaller = ("larger", "smaller") if len(others) == 1 else ("largest", "smallest")
    pairs = [(thing.whole_area, [other.whole_area for other in others])]
    pairs.append((thing.visible_area, [other.visible_area for other in others]))
    if all(own > _LARGER * max(rest) for own, rest in pairs):
        return [larger]
    if all(own * _LARGER < min(rest) for own, rest in pairs):
        return [smaller]
    return []


def describe(thing: SceneObject, others: Sequence[SceneObject]) -> list[tuple[PhraseKind, str]]:
    """Every phrase that singles the object out among the scene's objects of its noun (`others`)."""
    name = thing.noun.name
    found: list[tuple[PhraseKind, str]] = [
        ("position", f"the {name} {words}") for words in regions(thing, others)
    ]
    if thing.colour and all(other.colour != thing.colour for other in others):
        found.append(("colour", f"the {thing.colour} {name}"))
    if others:
        found.extend(
            ("position", f"the {word} {name}")
            for word, outwards in _EXTREMES
            if outwards(thing) > max(outwards(other) for other in others) + _GAP
        )
        found.extend(("size", f"the {word} {name}") for word in _sizes(thing, others))
    else:
        found.append(("name", f"the {name}"))
    return found


def _pick(rng: np.random.Generator, found: Sequence[tuple[PhraseKind, str]]) -> tuple[PhraseKind, str]:
    """One of the phrases, every kind being as likely as another."""
    kinds = sorted({kind for kind, _ in found})
    kind = kinds[int(rng.integers(len(kinds)))]
    of_kind = [phrase for phrase in found if phrase[0] == kind]
    return of_kind[int(rng.integers(len(of_kind)))]


def _single(rng: np.random.Generator, config: ScenesConfig, thing: SceneObject) -> list[Phrase]:
    """The noun alone, and now and then a second phrase. Without "name" among the kinds, one other phrase."""
    found = [phrase for phrase in describe(thing, ()) if phrase[0] in config.phrase_kinds]
    plain = [phrase for phrase in found if phrase[0] == "name"]
    more = [phrase for phrase in found if phrase[0] != "name"]
    chosen = list(plain)
    if more and (not plain or rng.random() < config.more_phrases):
        chosen.append(_pick(rng, more))
    return [Phrase(text=text, mask=thing.mask, kind=kind, noun=thing.noun.name) for kind, text in chosen]


def _several(rng: np.random.Generator, config: ScenesConfig, things: Sequence[SceneObject]) -> list[Phrase]:
    """All of a noun together, and each of them that can be singled out."""
    noun = things[0].noun
    phrases = []
    if "group" in config.phrase_kinds:
        count = f"{NUMBERS[len(things)]} " if not noun.many and rng.random() < 0.5 else ""
        together = np.logical_or.reduce([thing.mask for thing in things])
        phrases.append(Phrase(text=f"the {count}{noun.plural}", mask=together, kind="group", noun=noun.name))
    for thing in things:
        others = [other for other in things if other is not thing]
        found = [phrase for phrase in describe(thing, others) if phrase[0] in config.phrase_kinds]
        if found:
            kind, text = _pick(rng, found)
            phrases.append(Phrase(text=text, mask=thing.mask, kind=kind, noun=noun.name))
    return phrases


def group_by_noun(objects: Sequence[SceneObject]) -> list[list[SceneObject]]:
    """The objects by noun, in the order of each noun's first object."""
    groups: dict[Noun, list[SceneObject]] = {}
    for thing in objects:
        groups.setdefault(thing.noun, []).append(thing)
    return list(groups.values())


def phrase_scene(
    rng: np.random.Generator, config: ScenesConfig, objects: Sequence[SceneObject]
) -> list[Phrase]:
    """The phrases of a scene; each is true, and its mask holds all the pixels that it names."""
    phrases = []
    for things in group_by_noun(objects):
        phrases.extend(_single(rng, config, things[0]) if len(things) == 1 else _several(rng, config, things))
    return phrases


def caption_scene(rng: np.random.Generator, objects: Sequence[SceneObject], background: str) -> str:
    """A sentence that tells what the scene shows, in random order, with some colours and places."""
    groups = group_by_noun(objects)
    parts = []
    for index in rng.permutation(len(groups)):
        things = groups[int(index)]
        thing = things[0]
        shared = thing.colour if all(other.colour == thing.colour for other in things) else None
        adjective = shared if shared and rng.random() < 0.8 else ""
        if len(things) > 1 and thing.noun.many:
            words = f"{adjective} {thing.noun.name}".strip()
        elif len(things) > 1:
            words = " ".join(filter(None, (NUMBERS[len(things)], adjective, thing.noun.plural)))
        else:
            words = thing.noun.indefinite(adjective)
            places = regions(thing, ())
            if places and rng.random() < 0.4:
                words += f" {places[int(rng.integers(len(places)))]}"
        parts.append(words)
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{listed} {background}".strip()
