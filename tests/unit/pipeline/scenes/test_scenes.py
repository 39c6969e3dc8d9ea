import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.scenes import scene as scene_module
from pipeline.scenes.colours import colour_share
from pipeline.scenes.config import SPLITS, SceneCounts, ScenesConfig
from pipeline.scenes.layout import Placement
from pipeline.scenes.nouns import confusable, divide_nouns, load_nouns
from pipeline.scenes.phrases import NUMBERS
from pipeline.scenes.scene import compose_scene

SMALL = ScenesConfig(size=96, nouns=120, held_out_nouns=20, min_objects=2, max_objects=6)


def centroid(mask):
    """x, y in image sides, by a way of its own."""
    rows, columns = np.nonzero(mask)
    return (columns.mean() + 0.5) / mask.shape[1], (rows.mean() + 0.5) / mask.shape[0]


def named(scene, phrase):
    """The objects whose pixels the phrase's mask holds; every pixel must belong to one of them."""
    things = [thing for thing in scene.objects if (thing.mask & phrase.mask).any()]
    assert np.array_equal(np.logical_or.reduce([thing.mask for thing in things]), phrase.mask)
    assert {thing.noun.name for thing in things} == {phrase.noun}
    return things


def check_place(words, x, y):
    """What each word for a place must at least mean."""
    assert ("left" not in words) or x < 0.5
    assert ("right" not in words) or x > 0.5
    assert ("top" not in words) or y < 0.5
    assert ("bottom" not in words) or y > 0.5
    assert words != "in the middle" or max(abs(x - 0.5), abs(y - 0.5)) < 0.2


def check_single(scene, phrase, thing, others):
    noun, text = re.escape(thing.noun.name), phrase.text
    x, y = centroid(thing.mask)
    where = [centroid(other.mask) for other in others]
    if match := re.fullmatch(f"the {noun} ((?:on|at|in) .+)", text):
        check_place(match[1], x, y)
        for place in where:
            with pytest.raises(AssertionError):
                check_place(match[1], *place)
    elif match := re.fullmatch(f"the (leftmost|rightmost|highest|lowest) {noun}", text):
        axis, sign = {"leftmost": (0, 1), "rightmost": (0, -1), "highest": (1, 1), "lowest": (1, -1)}[
            match[1]
        ]
        assert others
        assert all(sign * (x, y)[axis] < sign * place[axis] for place in where)
    elif match := re.fullmatch(f"the (larger|largest|smaller|smallest) {noun}", text):
        areas = [other.mask.sum() for other in others]
        assert match[1].endswith("st") == (len(others) > 1)
        big = match[1].startswith("larg")
        assert thing.mask.sum() > max(areas) if big else thing.mask.sum() < min(areas)
    elif match := re.fullmatch(f"the (red|orange|yellow|green|blue|purple|pink) {noun}", text):
        rgba = np.dstack([scene.image, thing.mask.astype(np.uint8) * 255])
        assert colour_share(rgba, match[1]) > 0.35
        assert all(other.colour != match[1] for other in others)
    else:
        assert text == f"the {thing.noun.name}"
        assert not others


def check_phrase(scene, phrase):
    things = named(scene, phrase)
    same = [thing for thing in scene.objects if thing.noun.name == phrase.noun]
    if phrase.kind == "group":
        assert len(things) == len(same) >= 2
        plural = things[0].noun.plural
        assert phrase.text in {f"the {plural}", f"the {NUMBERS[len(same)]} {plural}"}
    else:
        assert len(things) == 1
        check_single(scene, phrase, things[0], [thing for thing in same if thing is not things[0]])


def check_scene(scene, config):
    masks = np.stack([thing.mask for thing in scene.objects])
    assert masks.sum(0).max() <= 1
    assert config.min_objects <= len(masks) <= config.max_objects
    for thing in scene.objects:
        assert thing.mask.sum() == thing.visible_area >= config.min_visible * thing.whole_area
        assert thing.visible_area >= config.min_area * config.size**2
        assert (thing.x, thing.y) == pytest.approx(centroid(thing.mask))
        assert not any(confusable(thing.noun, other.noun) for other in scene.objects)
    assert scene.phrases
    texts = [phrase.text for phrase in scene.phrases]
    assert len(set(texts)) == len(texts)
    for phrase in scene.phrases:
        check_phrase(scene, phrase)
    for thing in scene.objects:
        assert thing.noun.name in scene.caption or thing.noun.plural in scene.caption


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
def test_every_scene_is_true(seed, index, split):
    config = SMALL.model_copy(update={"seed": seed})
    check_scene(compose_scene(config, split=split, index=index), config)


def test_all_kinds_of_phrases_occur_and_are_true_at_full_size():
    config = ScenesConfig(repeat=0.5, colours=0.6)
    kinds = set()
    for index in range(40):
        scene = compose_scene(config, split="train", index=index)
        check_scene(scene, config)
        kinds |= {phrase.kind for phrase in scene.phrases}
    assert kinds == {"name", "group", "position", "size", "colour"}


def test_same_index_same_scene_whatever_came_before():
    one = compose_scene(SMALL, split="val", index=7)
    compose_scene(SMALL, split="train", index=3)
    two = compose_scene(SMALL, split="val", index=7)
    assert np.array_equal(one.image, two.image)
    assert [phrase.text for phrase in one.phrases] == [phrase.text for phrase in two.phrases]
    assert one.caption == two.caption
    other = compose_scene(SMALL.model_copy(update={"seed": 1}), split="val", index=7)
    assert not np.array_equal(one.image, other.image)


def contributions(patches, size):
    """Each object's share of each pixel by the textbook's "over", front to back, on whole canvases."""
    canvases = []
    for patch in patches:
        canvas = np.zeros((size, size, 4))
        canvas[patch.rows, patch.columns] = patch.rgba
        canvases.append(canvas)
    shares = []
    for number, canvas in enumerate(canvases):
        share = canvas[..., 3].copy()
        for front in canvases[number + 1 :]:
            share *= 1 - front[..., 3]
        shares.append(share)
    return canvases, shares


def test_masks_are_the_pixels_that_an_object_makes(monkeypatch):
    seen = {}
    paint = scene_module._paint

    def spy(background, patches, *, shadows):
        seen.update(background=background, patches=list(patches))
        return paint(background, patches, shadows=shadows)

    monkeypatch.setattr(scene_module, "_paint", spy)
    config = ScenesConfig(size=128, shadows=0, min_objects=4)
    for index in range(10):
        scene = compose_scene(config, split="train", index=index)
        canvases, shares = contributions(seen["patches"], config.size)
        image = seen["background"].astype(float)
        for canvas in canvases:
            image = image * (1 - canvas[..., 3:]) + canvas[..., :3] * 255
        assert np.abs(image.clip(0, 255) - scene.image).max() <= 0.51
        for thing, share in zip(scene.objects, shares, strict=True):
            certain = np.abs(share - 0.5) > 1e-4
            assert np.array_equal(thing.mask[certain], (share > 0.5)[certain])


def test_hidden_objects_are_left_out_and_the_rest_is_seen(monkeypatch):
    """Of two objects on one spot, the one behind goes; it is in no phrase and in no mask."""
    plan = scene_module.plan_layout
    behind = []

    def stacked(rng, config, *, split, blocked):
        two = config.model_copy(update={"min_objects": 2})
        places = plan(rng, two, split=split, blocked=blocked)
        moved = [dataclasses.replace(place, x=48.0, y=48.0) for place in places[:2]]
        behind.append(moved[0].noun)
        return [dataclasses.replace(moved[0], side=20.0), dataclasses.replace(moved[1], side=80.0)]

    monkeypatch.setattr(scene_module, "plan_layout", stacked)
    config = SMALL.model_copy(update={"min_objects": 1, "repeat": 0.0})
    left_out = 0
    for index in range(20):
        scene = compose_scene(config, split="train", index=index)
        for thing in scene.objects:
            assert thing.visible_area >= 0.4 * thing.whole_area
        if len(scene.objects) == 1:
            left_out += 1
            assert behind[-1].name not in {phrase.noun for phrase in scene.phrases}
    assert left_out > 5


def test_placement_is_what_is_drawn():
    """The drawing lies centred where its placement says, as large and as turned."""
    door = next(noun for noun in load_nouns() if noun.name == "door")
    for angle in (0.0, 30.0, 90.0):
        place = Placement(
            noun=door, style="noto", colour=None, side=80.0, angle=angle, flipped=False, x=100.0, y=90.0
        )
        patch = scene_module._draw(place, 256)
        opaque = np.zeros((256, 256), dtype=bool)
        opaque[patch.rows, patch.columns] = patch.rgba[..., 3] > 0.5
        x, y = centroid(opaque)
        assert (x * 256, y * 256) == pytest.approx((100, 90), abs=2)
        rows, columns = np.nonzero(opaque)
        longest = np.hypot(np.ptp(rows), np.ptp(columns))
        assert longest >= 78
        points = np.stack([columns - columns.mean(), -(rows - rows.mean())])
        _, vectors = np.linalg.eigh(np.cov(points))
        turned = math.degrees(math.atan2(vectors[1, -1], vectors[0, -1])) % 180
        assert min(abs(turned - (90 + angle) % 180), 180 - abs(turned - (90 + angle) % 180)) < 4


def test_styles_and_nouns_keep_to_their_splits():
    seen, out = (set(part) for part in divide_nouns(limit=SMALL.nouns, held_out=SMALL.held_out_nouns))
    for split in SPLITS:
        scenes = [compose_scene(SMALL, split=split, index=index) for index in range(25)]
        styles = {scene.style for scene in scenes}
        nouns = {thing.noun for scene in scenes for thing in scene.objects}
        if split.startswith("foreign"):
            assert styles == {"fluent-emoji-flat"}
        else:
            assert styles == {"noto", "twemoji"}
        assert nouns <= (out if split == "held_out" else seen)


def test_only_the_kinds_asked_for():
    config = SMALL.model_copy(update={"phrase_kinds": ("name",)})
    for index in range(20):
        scene = compose_scene(config, split="train", index=index)
        assert all(re.fullmatch(f"the {re.escape(p.noun)}", p.text) for p in scene.phrases)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"styles": ("noto", "fluent-emoji-flat")}, "both seen and foreign"),
        ({"styles": ("crayon",)}, "unknown style"),
        ({"styles": ()}, "at least one"),
        ({"min_objects": 5, "max_objects": 3}, "must not exceed"),
        ({"counts": SceneCounts(held_out=5)}, "held_out_nouns"),
        ({"nouns": 20, "held_out_nouns": 15}, "8 or more"),
        ({"sise": 128}, "sise"),
    ],
)
def test_impossible_configurations_are_refused(settings_, words):
    with pytest.raises(ValidationError, match=words):
        ScenesConfig(**settings_)
