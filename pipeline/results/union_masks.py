"""What a faultless saliency mask would be: everything that any phrase of a photo means, whatever the phrase."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.datasets.opening import open_dataset
from pipeline.datasets.sample import bounded_reader, load_image
from pipeline.evaluation.mask_folder import file_stem
from pipeline.recipe import Recipe


def write_union_masks(recipe: Recipe, set_name: str, folder: Path) -> Path:
    """For each sample of a set write the union of its photo's masks. Returns the folder, to be scored as a system."""
    dataset = open_dataset(recipe.data_of(set_name))
    read = bounded_reader(dataset.store)
    unions: dict[str, np.ndarray] = {}  # H,W of bool
    photos: dict[str, str] = {}  # label -> photo
    for sample in dataset.samples(recipe.set_named(set_name).split):
        photos[sample.label_id] = sample.image_id
        if sample.image_id in unions:
            height, width = unions[sample.image_id].shape
        else:
            width, height = load_image(sample, read).size
        mask = sample.mask.decode(read, width=width, height=height)
        unions[sample.image_id] = unions.get(sample.image_id, np.zeros_like(mask)) | mask
    (folder / set_name).mkdir(parents=True, exist_ok=True)
    for label, photo in photos.items():
        Image.fromarray(unions[photo]).save(folder / set_name / f"{file_stem(label)}.png")
    return folder
