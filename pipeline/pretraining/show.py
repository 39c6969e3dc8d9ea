"""What a pretrained model can do, finished or not: samples of captions, reconstructions, and figures."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from ldznet.pretraining.sampling import decode_latents, sample_latents
from pipeline.pictures import Curve, plot_curves, side_by_side, stacked
from pipeline.pretraining.autoencoder_batches import torch_generator
from pipeline.pretraining.curve_file import read_curve
from pipeline.pretraining.export import export_ldm
from pipeline.pretraining.figures import (
    noise_figures,
    reconstruct,
    reconstruction_figures,
    scene_images,
    validation_batch,
)
from pipeline.pretraining.parts import fresh_objective, read_autoencoder, read_tokenizer
from pipeline.pretraining.recipe import PretrainRecipe
from pipeline.scenes.config import Split
from pipeline.scenes.scene import compose_scene

_SPLITS: tuple[Split, ...] = ("val", "held_out", "foreign")
_CAPTIONS = 12
_SEEDS = 4  # pictures a caption
_SHOWN_PX = 128
_CURVES = {
    "autoencoder": [("train", "loss"), ("train", "pixels")],
    "diffusion": [("train", "mse"), ("validation", "conditional"), ("validation", "unconditional")],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How samples are drawn (DDIM)."""

    steps: int = 30
    guidance: float = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownLDM:
    """What an LDM can do, as pictures and figures."""

    samples: Image.Image
    reconstructions: Image.Image
    facts: dict[str, Any]


def show_pretrained(recipe: PretrainRecipe, *, sampler: Sampler = Sampler(), scenes: int = 128) -> Path:
    """Write `OUTPUT/show/`: `ldm` (fp16), `samples.png`, `reconstructions.png`, `curves-STAGE.png`, `figures.json`.

    Args:
        recipe: what was, or is being, trained.
        sampler: of the samples.
        scenes: of each split that figures are measured on.

    Returns:
        The folder.

    Raises:
        UserError: see `export_ldm`.
    """
    folder = Path(recipe.output_folder) / "show"
    step = export_ldm(recipe, folder / "ldm")
    shown = show_ldm(folder / "ldm", recipe, sampler=sampler, scenes=scenes)
    shown.samples.save(folder / "samples.png")
    shown.reconstructions.save(folder / "reconstructions.png")
    for stage, figures in _CURVES.items():
        curves = list(_curves(Path(recipe.output_folder) / "curves" / f"{stage}.jsonl", figures))
        if curves:
            picture = plot_curves(curves, y_label="loss", log_scale=True)
            (folder / f"curves-{stage}.png").write_bytes(picture)
    facts = {"diffusion_step": step, **shown.facts}
    (folder / "figures.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def show_ldm(
    source: str | Path, recipe: PretrainRecipe, *, sampler: Sampler = Sampler(), scenes: int = 128
) -> ShownLDM:
    """Samples, reconstructions and figures of a finished LDM.

    Args:
        source: its folder, or `builtin:NAME`.
        recipe: by which it was trained: its scenes and captions.
        sampler: of the samples.
        scenes: of each split that figures are measured on.
    """
    ldm = FrozenLDM.from_pretrained(source)
    autoencoder = read_autoencoder(ldm.folder, device=torch.device("cpu"))
    return ShownLDM(
        samples=samples_sheet(ldm, autoencoder, validation_captions(recipe), recipe=recipe, sampler=sampler),
        reconstructions=reconstructions_sheet(autoencoder, recipe),
        facts={
            "sampler": {"name": "DDIM", **asdict(sampler)},
            "scenes_a_split": scenes,
            "splits": split_figures(ldm, autoencoder, recipe, scenes=scenes),
        },
    )


def _curves(path: Path, figures: Sequence[tuple[str, str]]) -> Iterator[Curve]:
    for kind, name in figures if path.is_file() else ():
        steps, values = read_curve(path, kind=kind, name=name)
        if steps:
            yield Curve(name=f"{kind}: {name}", steps=steps, values=values)


def validation_captions(recipe: PretrainRecipe) -> list[str]:
    """Captions of a dozen validation scenes."""
    return [compose_scene(recipe.scenes, split="val", index=number).caption for number in range(_CAPTIONS)]


def samples_sheet(
    ldm: FrozenLDM, autoencoder: Any, captions: Sequence[str], *, recipe: PretrainRecipe, sampler: Sampler
) -> Image.Image:
    """A row a caption, a column a seed."""
    shape = (len(captions), _SEEDS, ldm.latent_channels, recipe.latent_side, recipe.latent_side)
    noise = torch.randn(shape, generator=torch_generator("samples", recipe.seed))
    rows = []
    for caption, noises in zip(captions, noise, strict=True):
        latents = sample_latents(ldm, [caption] * _SEEDS, noise=noises, **asdict(sampler))
        pictures = [to_image(image) for image in decode_latents(autoencoder, latents)]
        rows.append(side_by_side([("", one) for one in pictures], title=caption, height=_SHOWN_PX))
    return stacked(rows)


def reconstructions_sheet(autoencoder: Any, recipe: PretrainRecipe, *, count: int = 8) -> Image.Image:
    """Scenes of each split above what the first stage gives back of them."""
    rows = []
    for split in _shown_splits(recipe):
        images = scene_images(recipe.scenes, split=split, count=count)
        for name, shown in ((split, images), ("reconstructed", reconstruct(autoencoder, images))):
            panels = [("", to_image(image)) for image in shown]
            rows.append(side_by_side(panels, title=name, height=_SHOWN_PX))
    return stacked(rows)


def split_figures(
    ldm: FrozenLDM, autoencoder: Any, recipe: PretrainRecipe, *, scenes: int
) -> dict[str, dict[str, float]]:
    """Reconstruction, and errors of the noise estimate, of each split."""
    tokenize = read_tokenizer(ldm.folder)
    blank = tokenize([""])[0]
    objective = fresh_objective(recipe, blank=blank).eval()
    objective.unet, objective.text_encoder = ldm.unet, ldm.text_encoder
    figures: dict[str, dict[str, float]] = {}
    for split in _shown_splits(recipe):
        batch = validation_batch(
            autoencoder, tokenize, recipe.scenes, split=split, count=scenes, seed=recipe.seed
        )
        images = scene_images(recipe.scenes, split=split, count=scenes)
        figures[split] = reconstruction_figures(autoencoder, images) | noise_figures(objective, batch, blank)
    return figures


def to_image(pixels: Tensor) -> Image.Image:
    """`3,H,W` in [-1,1] -> a picture."""
    values = pixels.add(1).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())  # 3,H,W -> H,W,3


def _shown_splits(recipe: PretrainRecipe) -> list[Split]:
    return [split for split in _SPLITS if recipe.scenes.can_show(split)]
