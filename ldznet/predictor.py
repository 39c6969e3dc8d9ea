"""Masks of phrases in a photo: `set_image` once, then any number of phrases.

Deterministic: the timestep is fixed and all noise is seeded, where the authors' released inference draws prompt,
timestep, noise and z at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.images import to_tensor
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from ldznet.modeling import SegmentationNetwork, network_from_pretrained
from ldznet.prediction_config import PredictionConfig
from ldznet.prompts import fill

MAX_PHRASES_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What one phrase names in the photo, at the photo's own size."""

    phrase: str
    mask: NDArray[np.bool_]  # H,W
    probability: NDArray[np.float32]  # H,W, the sigmoid

    @property
    def area(self) -> float:
        """Share of the photo inside the mask, 0..1."""
        return float(self.mask.mean())


class Predictor:
    """A trained network together with the frozen LDM that it was trained on."""

    def __init__(self, *, network: SegmentationNetwork, ldm: FrozenLDM, config: PredictionConfig) -> None:
        self._network = network.eval().to(ldm.device)
        self._ldm = ldm
        self._config = config
        self._pixels: Tensor | None = None
        self._latents: Tensor | None = None
        self._photo_size = (0, 0)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, ldm: str | Path | None = None, device: str | torch.device | None = None
    ) -> Self:
        """Load a model folder and its frozen LDM.

        Args:
            folder: a folder that training wrote.
            ldm: where the frozen LDM lies, if not where it lay in training.
            device: a GPU where there is one, unless told.

        Raises:
            UserError: the folder is not ours, or the LDM is missing or another than the network was trained on.
        """
        config = PredictionConfig.load(Path(folder))
        network = network_from_pretrained(folder)
        ldm_folder = resolve_ldm(ldm or config.ldm_source)
        if ldm_digest(ldm_folder) != config.ldm_digest:
            raise UserError(f"{ldm_folder} is another LDM than the one that {folder} was trained on")
        frozen = FrozenLDM.from_pretrained(
            ldm_folder,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=torch.bfloat16 if config.compute_dtype == "bf16" else torch.float32,
            last_block=max(network.blocks, default=1),
        )
        return cls(network=network, ldm=frozen, config=config)

    @property
    def config(self) -> PredictionConfig:
        """How predictions are made."""
        return self._config

    @torch.inference_mode()
    def set_image(self, image: Image.Image) -> None:
        """Take an upright RGB photo (see `ldznet.images.decode_image`) and encode it once."""
        width, height = network_size(image.width, image.height, config=self._config)
        filter_ = Image.Resampling.LANCZOS if self._config.resize == "aspect" else Image.Resampling.BILINEAR
        pixels = to_tensor(image.resize((width, height), filter_)).unsqueeze(0)  # 1,3,H,W
        stride = self._ldm.latent_stride
        noise = self._noise((1, self._ldm.latent_channels, height // stride, width // stride), offset=0)
        self._latents = self._ldm.encode_images(pixels, noise=noise)
        self._pixels = pixels.to(self._ldm.device)
        self._photo_size = (image.height, image.width)

    @torch.inference_mode()
    def predict(self, phrases: Sequence[str]) -> list[Prediction]:
        """One prediction a phrase, in order.

        Raises:
            UserError: no image was set, or a phrase is empty.
        """
        if self._latents is None or self._pixels is None:
            raise UserError("set_image(photo) comes before predict(phrases)")
        for phrase in phrases:
            if not phrase.strip():
                raise UserError("an empty phrase names nothing: say what to segment, such as 'the red apple'")
        predictions: list[Prediction] = []
        for start in range(0, len(phrases), MAX_PHRASES_AT_ONCE):
            part = phrases[start : start + MAX_PHRASES_AT_ONCE]
            for phrase, logits in zip(part, self._logits(part), strict=True):
                probability = self._at_photo_size(logits)
                mask = probability > self._config.threshold
                predictions.append(Prediction(phrase=phrase, mask=mask, probability=probability))
        return predictions

    def _logits(self, phrases: Sequence[str]) -> Tensor:
        assert self._latents is not None and self._pixels is not None
        count = len(phrases)
        latents = self._latents.expand(count, -1, -1, -1)  # 1,4,h,w -> B,4,h,w
        context = self._ldm.encode_prompts(
            [fill(self._config.template, phrase.strip()) for phrase in phrases]
        )
        features: dict[int, Tensor] = {}
        if self._network.blocks:
            timesteps = torch.full((count,), self._config.timestep, device=latents.device)
            noise = self._noise((1, *latents.shape[1:]), offset=1).expand_as(latents)
            noisy = self._ldm.add_noise(latents, noise, timesteps)
            features = self._ldm.block_features(noisy, timesteps, context, blocks=self._network.blocks)
        return self._network(
            latents=latents,
            context=context.float(),
            features={block: tensor.float() for block, tensor in features.items()},
            images=self._pixels.expand(count, -1, -1, -1),
        )

    def _noise(self, shape: tuple[int, ...], *, offset: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(2 * self._config.seed + offset)
        return torch.randn(shape, generator=generator)

    def _at_photo_size(self, logits: Tensor) -> NDArray[np.float32]:
        resized = F.interpolate(
            logits.float()[None], size=self._photo_size, mode="bilinear", align_corners=False
        )
        probability: NDArray[np.float32] = torch.sigmoid(resized)[0, 0].cpu().numpy()  # 1,1,H,W -> H,W
        return probability


def network_size(width: int, height: int, *, config: PredictionConfig) -> tuple[int, int]:
    """Width and height in px at which the network sees a photo.

    `squash`: the square of the tables' protocol. `aspect`: the authors' demo, an area of `size`^2 with the aspect
    kept and both sides floored to multiples of 64.
    """
    if config.resize == "squash":
        return config.size, config.size
    scale = config.size / (width * height) ** 0.5
    floored = (int(side * scale) // 64 * 64 for side in (width, height))
    new_width, new_height = (max(64, side) for side in floored)
    return new_width, new_height
