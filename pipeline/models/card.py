"""The model card: `README.md` of a saved model, as model hubs show it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ldznet.ldm_folder import resolve_ldm
from pipeline.cache.manifest import Manifest
from pipeline.models.folder import CARD
from pipeline.models.origins import data_terms, ldm_origin
from pipeline.recipe import NetworkOptions, Recipe
from pipeline.report.machine import package_versions
from pipeline.report.markdown import render_markdown
from pipeline.tracking.redaction import redacted_text

_TEMPLATE = Path(__file__).with_name("card.md.j2")
_SCORES = re.compile(r"(?<=<!-- scores -->\n).*?(?=<!-- /scores -->)", re.DOTALL)
_KINDS = {
    "ldznet": "LD-ZNet: a segmentation network on a latent diffusion model's latents and inner features.",
    "znet": "ZNet: a segmentation network on a latent diffusion model's latents.",
    "rgbnet": "RGBNet: a segmentation network on pixels, a baseline of LD-ZNet.",
}
FIGURES = {"miou": "mIoU", "iou_fg": "IoU_FG", "ap": "AP"}  # of a validation, as tables name them


def write_card(
    folder: Path,
    *,
    recipe: Recipe,
    manifest: Manifest | None,
    ldm_digest: str,
    step: int,
    metrics: Mapping[str, float],
    parameters: int,
) -> None:
    """Write a trained model's card into its folder: no path of this machine, no secret.

    Args:
        folder: the model's.
        recipe: that trained it.
        manifest: of the samples that it was trained on; None: features were computed online, without a cache.
        ldm_digest: of the frozen LDM.
        step: after which these weights were kept.
        metrics: of the validation that chose them; empty without one.
        parameters: how many numbers the network has.
    """
    ldm = ldm_origin(recipe.ldm.source, resolve_ldm(recipe.ldm.source))
    text = render_markdown(
        _TEMPLATE,
        recipe=recipe,
        title=f"{recipe.name}-{recipe.network.label}",
        kind=_KINDS[recipe.network.kind],
        ldm=ldm,
        from_ldm=recipe.network.init_from != "random",
        validation=[
            (title, f"{100 * metrics[name]:.1f} %") for name, title in FIGURES.items() if name in metrics
        ],
        threshold=metrics.get("threshold", 0.5),
        data=list(_data(recipe, manifest, f"{ldm.name}, digest `{ldm_digest}`")),
        training=list(_training(recipe, step, parameters)),
        data_terms=data_terms(recipe),
        side=recipe.set_named(recipe.validate_on or recipe.train_on).view.size,
        versions=package_versions(),
    )
    (folder / CARD).write_text(redacted_text(text), encoding="utf-8")


def add_scores(folder: Path, rows: Sequence[Sequence[str]], *, note: str) -> bool:
    """Put a table of scores (its head first) into a model's card, in place of an older one. False: it has no card."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if not _SCORES.search(text):
        return False
    head, *body = (f"| {' | '.join(cells)} |" for cells in rows)
    table = "\n".join([head, "|" + "---|" * len(rows[0]), *body, "", note]) + "\n"
    card.write_text(_SCORES.sub(lambda _: redacted_text(table), text), encoding="utf-8")
    return True


def _data(recipe: Recipe, manifest: Manifest | None, ldm: str) -> Iterator[tuple[str, str]]:
    chosen, features = recipe.set_named(recipe.train_on), recipe.features
    if manifest is not None:
        left_out = manifest.failed + manifest.filtered
        yield "data set", f"{manifest.dataset}, split `{manifest.split}`"
        yield "samples", f"{manifest.samples:,}" + (f"; {left_out:,} left out" if left_out else "")
        yield "manifest", f"`{manifest.manifest_id}`"
        yield "cache key", f"`{manifest.cache_key}`"
    else:
        data = recipe.data_of(recipe.train_on)
        yield "data set", f"{data.name or data.format}, split `{chosen.split}`"
    draws = _counted(chosen.draws, "draw") if recipe.train.draws == "cycle" else "fresh draws each epoch"
    flips = ", half of them flipped" if "flip" in recipe.train.augment else ""
    yield "views", f"{chosen.view.policy}, {chosen.view.size} px{flips}; {draws} of a sample"
    yield "timesteps", str(chosen.timesteps)
    yield "prompts", "; ".join(f"`{prompt}`" for prompt in chosen.prompts)
    if recipe.train.features == "cached":
        yield "stored as", f"{features.stored_dtype}, computed in {features.compute_dtype}"
    else:
        yield "features", f"online, computed in {features.compute_dtype}"
    yield "frozen LDM", ldm


def _training(recipe: Recipe, step: int, parameters: int) -> Iterator[tuple[str, str]]:
    network, train = recipe.network, recipe.train
    if network.kind == "ldznet":
        blocks = ", ".join(map(str, network.blocks))
        yield "fused blocks", f"{blocks}; {network.fusion.replace('_', '-')}, {network.positional} positions"
    if network.text == "none":
        yield "text", "none: the network's own cross-attention sees no phrase"
    yield "parameters", f"{parameters / 1e6:,.1f} million"
    yield "started from", _start(network)
    length = f"{train.steps:,} steps" if train.steps is not None else f"{train.epochs:g} epochs"
    yield "weights", f"of step {step:,}{', averaged (EMA)' if train.ema else ''}; length {length}"
    yield "batch", f"{train.batch_size} samples"
    warm_up = _counted(train.warmup_steps, "warm-up step")
    rate = f"{train.peak_lr:g} ({train.schedule}, {warm_up}), AdamW, weight decay {train.weight_decay:g}"
    yield "learning rate", rate
    yield "seed", str(train.seed)
    yield "precision", train.precision


def _start(network: NetworkOptions) -> str:
    if not network.starts_trained:
        return "the LDM's UNet weights" if network.init_from == "ldm" else "random weights"
    told = network.init_from if ":" in network.init_from else "in a local folder"
    return f"a trained network ({told})"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
