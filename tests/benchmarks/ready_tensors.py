"""A data set's photos and phrases as tensors in memory, for loops that run the networks and nothing else."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from ldznet.images import decode_image, to_tensor
from ldznet.prompts import DEFAULT_TEMPLATE, fill
from pipeline.cache.spec import FeaturesConfig
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.views import apply_to_image, squash_view


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyTensors:
    """N phrases about V photos."""

    images: Tensor  # V,3,H,W in [-1,1]
    image_of: Tensor  # N row of the phrase's photo
    prompts: list[str]  # distinct ones, sorted
    prompt_of: Tensor  # N
    timesteps: Tensor  # N
    noise: Tensor  # N,4,h,w

    @classmethod
    def read(cls, data: Path, *, pixels: int, photos: int | None = None) -> "ReadyTensors":
        """Of a folder that `made_photos` wrote: all, or the first photos."""
        dataset = open_dataset(DataConfig(format="folder", root=str(data)))
        samples = list(dataset.samples("train"))
        kept = list(dict.fromkeys(sample.image for sample in samples))[:photos]
        samples = [sample for sample in samples if sample.image in kept]
        views: dict[str, Tensor] = {}
        for sample in samples:
            if sample.image not in views:
                image = decode_image(dataset.store.get(sample.image))
                view = squash_view(width=image.width, height=image.height, size=pixels)
                views[sample.image] = to_tensor(apply_to_image(image, view))
        rows = {key: row for row, key in enumerate(views)}
        prompts = sorted({fill(DEFAULT_TEMPLATE, sample.phrase) for sample in samples})
        return cls(
            images=torch.stack(list(views.values())),
            image_of=torch.tensor([rows[sample.image] for sample in samples]),
            prompts=prompts,
            prompt_of=torch.tensor([prompts.index(fill(DEFAULT_TEMPLATE, one.phrase)) for one in samples]),
            timesteps=torch.randint(300, 500, (len(samples),)),
            noise=torch.randn(len(samples), 4, pixels // 8, pixels // 8),
        )

    def __len__(self) -> int:
        """Phrases."""
        return len(self.image_of)

    def encode(
        self, ldm: FrozenLDM, images: Tensor, prompts: list[str], features: FeaturesConfig
    ) -> tuple[Tensor, Tensor]:
        """Latents of the images and contexts of the prompts, in the batch shapes of the specification."""
        size = features.image_batch
        z = [ldm.encode_images(part, noise=self.noise[: len(part)]) for part in images.split(size)]
        size = features.prompt_batch
        context = [
            ldm.encode_prompts(prompts[start : start + size]) for start in range(0, len(prompts), size)
        ]
        return torch.cat(z), torch.cat(context)

    def features(self, ldm: FrozenLDM, features: FeaturesConfig) -> None:
        """Each network as seldom as can be: VAE a photo, text a distinct prompt, UNet up to the last block a phrase."""
        z, context = self.encode(ldm, self.images, self.prompts, features)
        for part in torch.arange(len(self)).split(features.feature_batch):
            noisy = ldm.add_noise(z[self.image_of[part]], self.noise[part], self.timesteps[part])
            ldm.block_features(
                noisy, self.timesteps[part], context[self.prompt_of[part]], blocks=features.blocks
            )

    def estimates(self, ldm: FrozenLDM, features: FeaturesConfig) -> None:
        """The authors' order of work: VAE, text encoder and the whole UNet for every phrase."""
        prompts = [self.prompts[row] for row in self.prompt_of.tolist()]
        z, context = self.encode(ldm, self.images[self.image_of], prompts, features)
        for part in torch.arange(len(self)).split(features.feature_batch):
            noisy = ldm.add_noise(z[part], self.noise[part], self.timesteps[part])
            ldm.noise_estimate(noisy, self.timesteps[part], context[part])
