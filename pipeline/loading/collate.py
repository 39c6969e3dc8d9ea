"""Entries of a cache, stacked into a batch of a fixed size."""

from collections.abc import Sequence

import numpy as np
import torch

from ldznet.images import to_tensor
from pipeline.cache.entry import Entry
from pipeline.loading.batch import Batch


def collate(entries: Sequence[Entry], *, size: int, samples: int) -> Batch:
    """Stack entries into a batch of a fixed size; what is missing repeats the last entry with weight 0.

    Tensors keep their stored type, so that the least bytes travel to the device.
    """
    filled = [*entries, *[entries[-1]] * (size - len(entries))]
    images = None
    if filled[0].image is not None:
        images = torch.stack([to_tensor(entry.image) for entry in filled if entry.image is not None])
    return Batch(
        keys=tuple(entry.key for entry in filled),
        latents=torch.stack([entry.latents for entry in filled]),  # B,4,h,w
        context=torch.stack([entry.context for entry in filled]),  # B,77,D
        features={b: torch.stack([entry.features[b] for entry in filled]) for b in filled[0].features},
        scales={b: torch.stack([entry.scales[b] for entry in filled]) for b in filled[0].scales},  # B,G
        masks=torch.from_numpy(np.stack([entry.mask for entry in filled])).unsqueeze(1),  # B,1,H,W
        weight=(torch.arange(size) < samples).float(),
        images=images,
        facts=tuple(entry.facts for entry in filled),
    )
