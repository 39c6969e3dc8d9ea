"""A photo's masks all in one: what a faultless mask of whatever stands out would be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.datasets.opening import open_dataset
from pipeline.datasets.sample import bounded_reader, load_image
from pipeline.evaluation.mask_folder import MaskFolder
from pipeline.recipe_file import load_recipe
from pipeline.results.union_masks import write_union_masks


def test_each_phrase_has_the_union_of_its_photos_masks(
    small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(small_recipe())
    folder = MaskFolder(write_union_masks(recipe, "val", tmp_path / "union"))
    assert folder.has("val") and not folder.has("train")
    dataset = open_dataset(recipe.data_of("val"))
    read = bounded_reader(dataset.store)
    samples = list(dataset.samples("val"))
    larger = 0
    for one in samples:
        width, height = load_image(one, read).size
        masks = [
            other.mask.decode(read, width=width, height=height)
            for other in samples
            if other.image_id == one.image_id
        ]
        facts = {"label_id": one.label_id, "image_id": one.image_id, "phrase": one.phrase}
        given = folder.read("val", key="none", facts=facts)
        assert np.array_equal(given, np.any(masks, axis=0))
        larger += given.sum() > one.mask.decode(read, width=width, height=height).sum()
    assert larger  # some photo has several
