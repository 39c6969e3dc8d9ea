"""Entries of photos straight from a frozen LDM, without a cache between."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ldznet.frozen_ldm import FrozenLDM
from ldznet.images import to_tensor
from ldznet.prompts import DEFAULT_TEMPLATE, fill
from pipeline.cache.entry import Entry
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.datasets.sample import Dataset, load_image
from pipeline.scenes.backgrounds import PHOTOS, draw_background
from pipeline.views import apply_to_image, apply_to_mask, squash_view

SHARED_PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos_phrasecut"
BLOCKS = (6, 7, 8, 9, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A squashed photo with a phrase and its mask."""

    pixels: NDArray[np.uint8]  # S,S,3
    phrase: str
    mask: NDArray[np.bool_]  # S,S
    image_id: str


def data_views(dataset: Dataset, split: str, *, size: int, one_phrase: bool = False) -> Iterator[View]:
    """The views of a split: of every phrase, or of the first phrase of each photo."""
    seen: set[str] = set()
    for sample in dataset.samples(split):
        if one_phrase and sample.image in seen:
            continue
        seen.add(sample.image)
        image = load_image(sample, dataset.store.get)
        view = squash_view(width=image.width, height=image.height, size=size)
        mask = sample.mask.decode(dataset.store.get, width=image.width, height=image.height)
        yield View(
            pixels=apply_to_image(image, view),
            phrase=sample.phrase,
            mask=apply_to_mask(mask, view),
            image_id=sample.image_id,
        )


def photo_views(*, count: int, size: int) -> tuple[list[View], str]:
    """So many real photos, and where they are from: shared ones, else those in the installed wheels."""
    if SHARED_PHOTOS.is_dir():
        dataset = open_dataset(DataConfig(format="phrasecut", root=str(SHARED_PHOTOS)))
        views = data_views(dataset, "test", size=size, one_phrase=True)
        return [view for view, _ in zip(views, range(count), strict=False)], "COCO photos"
    random = np.random.default_rng(0)
    backgrounds = [
        draw_background(random, size=size, photos=1, held_out=bool(n % 2))
        for n in range(min(count, len(PHOTOS)))
    ]
    made = [
        View(pixels=one.pixels, phrase="a photo", mask=one.pixels[..., 0] > 127, image_id=str(number))
        for number, one in enumerate(backgrounds)
    ]
    return made, "photos of the scikit-image and scikit-learn wheels"


def entries_of(
    ldm: FrozenLDM, views: Sequence[View], *, timesteps: Sequence[int], batch: int, seed: int = 0
) -> list[Entry]:
    """z, context and block features of views, each with its own noise and timestep; fp32 as computed."""
    random = torch.Generator().manual_seed(seed)
    entries = []
    for start in range(0, len(views), batch):
        part = views[start : start + batch]
        images = torch.stack([to_tensor(view.pixels) for view in part])  # B,3,S,S
        z = ldm.encode_images(images)  # B,4,S/8,S/8
        context = ldm.encode_prompts([fill(DEFAULT_TEMPLATE, view.phrase) for view in part])  # B,77,D
        steps = torch.tensor(timesteps[start : start + batch])
        noisy = ldm.add_noise(z, torch.randn(z.shape, generator=random), steps)
        features = ldm.block_features(noisy, steps, context, blocks=BLOCKS)
        entries += [
            Entry(
                key=f"{start + row:032x}",
                latents=z[row],
                context=context[row],
                features={block: tensor[row] for block, tensor in features.items()},
                mask=view.mask,
                facts={"phrase": view.phrase, "image_id": view.image_id},
            )
            for row, view in enumerate(part)
        ]
    return entries
