"""Masks of phrases in a photo: `set_image` once, then any number of phrases.

Deterministic: the timestep is fixed and all noise is seeded, where the authors' released inference draws prompt,
timestep, noise and z at random. On request, several timesteps or seeds are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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
from ldznet.images import decode_image, normalise_image, to_tensor
from ldznet.ldm_folder import Part, ldm_digest, resolve_ldm
from ldznet.modeling import SegmentationNetwork, network_from_pretrained
from ldznet.prediction_config import PredictionConfig, Resize
from ldznet.prompts import fill

PASSES_AT_ONCE = 8  # through the networks, as one batch


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
        self._pixels: Tensor | None = None  # 1,3,H,W
        self._latents: dict[int, Tensor] = {}  # seed -> 1,4,h,w of the photo
        self._photo_size = (0, 0)  # height, width

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, ldm: str | Path | None = None, device: str | torch.device | None = None
    ) -> Self:
        """Load a model folder and its frozen LDM.

        Args:
            folder: a folder that training or `ldznet import` wrote.
            ldm: where the frozen LDM lies, if not where it lay in training.
            device: a GPU where there is one, unless told.

        Raises:
            UserError: the folder is not ours, or the LDM is missing or another than the network was trained on.
        """
        config = PredictionConfig.load(Path(folder))
        network = network_from_pretrained(folder)
        source = ldm or config.ldm_source
        if source is None:
            raise UserError(f"{folder} does not say which frozen LDM it was trained on: name it with --ldm")
        ldm_folder = resolve_ldm(source)
        if config.ldm_digest is not None and ldm_digest(ldm_folder) != config.ldm_digest:
            raise UserError(f"{ldm_folder} is another LDM than the one that {folder} was trained on")
        frozen = FrozenLDM.from_pretrained(
            ldm_folder,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=torch.bfloat16 if config.compute_dtype == "bf16" else torch.float32,
            last_block=max(network.blocks, default=1),
            components=_parts_for(network),
        )
        return cls(network=network, ldm=frozen, config=config)

    @property
    def config(self) -> PredictionConfig:
        """How predictions are made."""
        return self._config

    @torch.inference_mode()
    def set_image(self, image: Image.Image | bytes | str | Path, *, resize: Resize | None = None) -> None:
        """Take a photo and encode it once.

        Args:
            image: a file, its bytes, or a Pillow image; of any kind that `ldznet.images.decode_image` takes.
            resize: `squash` or `aspect`, if not as the model's configuration says.

        Raises:
            UserError: there is no such file.
            DataFault: it is no image, is damaged, or is too large.
        """
        photo = _photo(image)
        width, height = network_size(
            photo.width, photo.height, size=self._config.size, resize=resize or self._config.resize
        )
        squashed = (resize or self._config.resize) == "squash"
        filter_ = Image.Resampling.BILINEAR if squashed else Image.Resampling.LANCZOS
        pixels = to_tensor(photo.resize((width, height), filter_)).unsqueeze(0)  # 3,H,W -> 1,3,H,W
        self._pixels, self._latents = pixels.to(self._ldm.device), {}
        self._photo_size = (photo.height, photo.width)
        if self._sees_latents:
            self._encoded(self._config.seed)

    @torch.inference_mode()
    def predict(
        self,
        phrases: Sequence[str],
        *,
        timesteps: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        threshold: float | None = None,
    ) -> list[Prediction]:
        """One prediction a phrase, in order. Equal arguments give equal predictions.

        Args:
            phrases: any number.
            timesteps: at which the LDM looks at the noised photo; the configuration's one unless told. Logits of
                all timesteps and seeds are averaged.
            seeds: of the noise, and of the latents' draw; the configuration's one unless told.
            threshold: of the masks, on the sigmoid; the configuration's unless told.

        Raises:
            UserError: no image was set, a phrase is empty, or a number lies outside its range.
        """
        if self._pixels is None:
            raise UserError("set_image(photo) comes before predict(phrases)")
        if any(not phrase.strip() for phrase in phrases):
            raise UserError("an empty phrase names nothing: say what to segment, such as 'the red apple'")
        cut = self._config.threshold if threshold is None else threshold
        if not 0 < cut < 1:
            raise UserError(f"threshold {cut:g} lies outside (0, 1)")
        draws = list(product(timesteps or (self._config.timestep,), seeds or (self._config.seed,)))
        if not self._network.blocks:  # no noised photo is looked at, so timesteps make no difference
            draws = [(self._config.timestep, seed) for seed in seeds or (self._config.seed,)]
        if not self._sees_latents:  # nothing is drawn at all
            draws = draws[:1]
        predictions = []
        for phrase, logits in zip(phrases, self._averaged_logits(phrases, draws), strict=True):
            probability = self._at_photo_size(logits)
            predictions.append(Prediction(phrase=phrase, mask=probability > cut, probability=probability))
        return predictions

    def _averaged_logits(self, phrases: Sequence[str], draws: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The mean over draws (timestep, seed) of each phrase's logits, `1,H,W`; passes go in batches."""
        contexts: list[Tensor] = []  # 77,D a phrase
        for start in range(0, len(phrases), PASSES_AT_ONCE):
            part = phrases[start : start + PASSES_AT_ONCE]
            prompts = [fill(self._config.template, phrase.strip()) for phrase in part]
            contexts.extend(self._ldm.encode_prompts(prompts))
        passes = list(product(range(len(phrases)), draws))
        sums: dict[int, Tensor] = {}
        for start in range(0, len(passes), PASSES_AT_ONCE):
            part_passes = passes[start : start + PASSES_AT_ONCE]
            context = torch.stack([contexts[phrase] for phrase, _ in part_passes])  # B,77,D
            for (phrase, _), one in zip(
                part_passes, self._logits(context, [draw for _, draw in part_passes]), strict=True
            ):
                sums[phrase] = sums[phrase] + one if phrase in sums else one
        return [sums[phrase] / len(draws) for phrase in range(len(phrases))]

    def _logits(self, context: Tensor, draws: Sequence[tuple[int, int]]) -> Tensor:
        """One pass a row: `B,77,D` and B draws -> `B,1,H,W`."""
        assert self._pixels is not None
        latents: Tensor | None = None
        features: dict[int, Tensor] = {}
        if self._sees_latents:
            latents = torch.cat([self._encoded(seed) for _, seed in draws])  # B,4,h,w
        if latents is not None and self._network.blocks:
            timesteps = torch.tensor([timestep for timestep, _ in draws], device=latents.device)
            noise = torch.cat([self._noise(seed, (1, *latents.shape[1:]), offset=1) for _, seed in draws])
            noisy = self._ldm.add_noise(latents, noise, timesteps)
            features = self._ldm.block_features(noisy, timesteps, context, blocks=self._network.blocks)
        return self._network(
            latents=latents,
            context=context.float(),
            features={block: tensor.float() for block, tensor in features.items()},
            images=self._pixels.expand(len(draws), -1, -1, -1),
        )

    @property
    def _sees_latents(self) -> bool:
        return "latents" in self._network.inputs

    def _encoded(self, seed: int) -> Tensor:
        """The photo's latents, `1,4,h,w`, drawn with a seed: once a photo."""
        assert self._pixels is not None
        if seed not in self._latents:
            height, width = self._pixels.shape[-2:]
            stride = self._ldm.latent_stride
            noise = self._noise(
                seed, (1, self._ldm.latent_channels, height // stride, width // stride), offset=0
            )
            self._latents[seed] = self._ldm.encode_images(self._pixels, noise=noise)
        return self._latents[seed]

    @staticmethod
    def _noise(seed: int, shape: tuple[int, ...], *, offset: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(2 * seed + offset)
        return torch.randn(shape, generator=generator)

    def _at_photo_size(self, logits: Tensor) -> NDArray[np.float32]:
        resized = F.interpolate(
            logits.float()[None], size=self._photo_size, mode="bilinear", align_corners=False
        )
        probability: NDArray[np.float32] = torch.sigmoid(resized)[0, 0].cpu().numpy()  # 1,1,H,W -> H,W
        return probability


def network_size(width: int, height: int, *, size: int, resize: Resize) -> tuple[int, int]:
    """Width and height in px at which the network sees a photo.

    `squash`: the square of the tables' protocol. `aspect`: the authors' demo, an area of `size`^2 with the aspect
    kept and both sides floored to multiples of 64.
    """
    if resize == "squash":
        return size, size
    scale = size / (width * height) ** 0.5
    floored = (int(side * scale) // 64 * 64 for side in (width, height))
    new_width, new_height = (max(64, side) for side in floored)
    return new_width, new_height


def _parts_for(network: SegmentationNetwork) -> tuple[Part, ...]:
    """What of the frozen LDM a network's predictions take; the rest need not be loaded."""
    asked: dict[Part, bool] = {
        "unet": bool(network.blocks),
        "vae": "latents" in network.inputs,
        "text_encoder": True,
    }
    return tuple(part for part, needed in asked.items() if needed)


def _photo(image: Image.Image | bytes | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return normalise_image(image)
    if isinstance(image, bytes):
        return decode_image(image)
    try:
        return decode_image(Path(image).read_bytes())
    except OSError as error:
        raise UserError(f"the photo {image} cannot be read: {error.strerror or error}") from error
