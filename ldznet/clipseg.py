"""CLIPSeg as a baseline, through transformers' `CLIPSegForImageSegmentation`: photos and phrases -> mask logits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from ldznet.errors import UserError
from ldznet.images import to_tensor
from ldznet.ldm_folder import download_snapshot
from ldznet.prompts import DEFAULT_TEMPLATE, fill

_PATTERNS = ["*.safetensors", "*.json", "*.txt"]
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PREPROCESSOR = "preprocessor_config.json"


class CLIPSeg:
    """A CLIPSeg model with its tokenizer and its way of preparing photos.

    Photos are squashed to the square that its `preprocessor_config.json` names and normalised as it says. The prompt
    is `a photo of a {}.` unless told; no source names the one of published tables.
    """

    def __init__(
        self, *, model: Any, tokenizer: Any, preprocessor: dict[str, Any], template: str = DEFAULT_TEMPLATE
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        size = preprocessor["size"]
        self._size = (size, size) if isinstance(size, int) else (size["width"], size["height"])
        self._filter = Image.Resampling(preprocessor.get("resample", Image.Resampling.BILINEAR))
        # to_tensor gives [-1,1]; the model wants ([0,1] - mean) / std.
        self._mean = torch.tensor(preprocessor["image_mean"]).view(3, 1, 1)
        self._std = torch.tensor(preprocessor["image_std"]).view(3, 1, 1)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        device: str | torch.device = "cpu",
        template: str = DEFAULT_TEMPLATE,
    ) -> Self:
        """Load from a folder or a hub id such as `CIDAS/clipseg-rd64-refined`. Safetensors only.

        Raises:
            UserError: no such folder or hub id, another kind of model, or a part that is missing.
        """
        folder = clipseg_folder(folder_or_hub_id)
        from transformers import CLIPSegForImageSegmentation, CLIPTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # of a load that takes a second
        try:
            model, info = CLIPSegForImageSegmentation.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"CLIPSeg {folder} cannot be loaded ({reason})") from error
        missing = sorted(str(name) for name in info["missing_keys"])
        if missing:
            raise UserError(f"CLIPSeg {folder}: its weights have no tensor '{missing[0]}'")
        return cls(
            model=model.to(device).eval().requires_grad_(requires_grad=False),
            tokenizer=tokenizer,
            preprocessor=_preprocessor(folder),
            template=template,
        )

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @torch.inference_mode()
    def __call__(self, photos: Sequence[Image.Image], phrases: Sequence[str]) -> Tensor:
        """Mask logits of one phrase a photo.

        Args:
            photos: B upright RGB photos of any size.
            phrases: B phrases.

        Returns:
            `B,1,h,w` fp32 on the CPU; h and w are the model's own (352 px for the published ones).
        """
        device = self._model.device
        text = self._tokenizer(
            [fill(self._template, phrase.strip()) for phrase in phrases],
            padding="max_length",  # so that a phrase's neighbours do not matter
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        pixels = torch.stack([self._prepared(photo) for photo in photos])  # B,3,h,w
        logits = self._model(
            input_ids=text.input_ids.to(device),
            attention_mask=text.attention_mask.to(device),
            pixel_values=pixels.to(device),
        ).logits
        return logits.float().cpu().reshape(len(phrases), 1, *logits.shape[-2:])  # B,h,w -> B,1,h,w

    def _prepared(self, photo: Image.Image) -> Tensor:
        unit = (to_tensor(photo.resize(self._size, self._filter)) + 1) / 2
        return (unit - self._mean) / self._std


def clipseg_folder(folder_or_hub_id: str | Path) -> Path:
    """The checked folder of a CLIPSeg model: a local one, or the snapshot of a hub id.

    Raises:
        UserError: neither a folder nor a reachable hub id, another kind of model, or no safetensors.
    """
    folder = Path(folder_or_hub_id).expanduser()
    if not folder.is_dir():
        folder = download_snapshot(str(folder_or_hub_id), patterns=_PATTERNS, what="CLIPSeg")
    if not is_clipseg(folder):
        raise UserError(f"{folder} is no CLIPSeg model: its config.json does not say model_type clipseg")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(f"CLIPSeg {folder} has no {_WEIGHTS[0]}: pickle weights are never loaded")
    return folder


def is_clipseg(folder: Path) -> bool:
    """Whether a folder's `config.json` is a CLIPSeg model's."""
    return model_type(folder) == "clipseg"


def model_type(folder: Path) -> str | None:
    """What transformers calls a folder's model; None where the folder does not tell."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / _PREPROCESSOR
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"CLIPSeg {folder}: {_PREPROCESSOR} cannot be read ({error})") from error
    size = content.get("size") if isinstance(content, dict) else None
    known = isinstance(size, int) or (isinstance(size, dict) and {"width", "height"} <= size.keys())
    if not known or not {"image_mean", "image_std"} <= content.keys():
        raise UserError(f"{path}: size (height and width), image_mean and image_std are expected")
    return dict(content)
