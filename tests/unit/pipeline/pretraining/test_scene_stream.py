"""Scenes on the fly: the same whoever composes them, with captions that say what training may know."""

import numpy as np
import pytest

from pipeline.draws import draw_generator
from pipeline.pretraining.scene_stream import SceneStream, compose_batch, scene_captions
from pipeline.scenes.config import ScenesConfig
from pipeline.scenes.nouns import divide_nouns
from pipeline.scenes.scene import compose_scene

SCENES = ScenesConfig(size=64, nouns=24, held_out_nouns=8, min_objects=1, max_objects=2, min_scale=0.4)


def test_a_batch_is_the_scenes_of_its_numbers():
    batch = compose_batch(SCENES, split="train", numbers=[5, 2], captions=3)
    scenes = [compose_scene(SCENES, split="train", index=number) for number in (5, 2)]
    assert np.array_equal(batch.images, np.stack([scene.image for scene in scenes]))
    assert [each[0] for each in batch.captions] == [scene.caption for scene in scenes]
    assert batch.images.dtype == np.uint8


def test_prompts_are_the_scenes_phrases_in_the_published_templates():
    scene = compose_scene(SCENES, split="train", index=1)
    caption, *prompts = scene_captions(scene, count=20, rng=draw_generator("test"))
    assert caption == scene.caption
    assert len(prompts) == 19
    assert all(any(phrase.text in prompt for phrase in scene.phrases) for prompt in prompts)
    assert len(set(prompts)) > 3


def test_captions_do_not_depend_on_what_was_drawn_before():
    whole = compose_batch(SCENES, split="train", numbers=range(6), captions=4)
    last = compose_batch(SCENES, split="train", numbers=[5], captions=4)
    assert whole.captions[5] == last.captions[0]


def test_held_out_nouns_are_in_no_training_caption():
    _, held_out = divide_nouns(limit=24, held_out=8)
    batch = compose_batch(SCENES, split="train", numbers=range(150), captions=3)
    said = " ".join(caption for each in batch.captions for caption in each)
    assert not [noun.name for noun in held_out if noun.name in said]


def test_workers_give_the_same_batches_in_the_same_order():
    numbers = [range(first, first + 3) for first in range(0, 30, 3)]
    here, there = (
        list(SceneStream(config=SCENES, split="val", captions=2, workers=workers).batches(iter(numbers)))
        for workers in (0, 2)
    )
    assert len(here) == len(there) == 10
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one.images, other.images)
        assert one.captions == other.captions


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream_is_left_when_its_reader_leaves(workers):
    def endless():
        number = 0
        while True:
            yield [number]
            number += 1

    batches = SceneStream(config=SCENES, split="train", workers=workers).batches(endless())
    assert next(batches).images.shape == (1, 64, 64, 3)
    batches.close()
