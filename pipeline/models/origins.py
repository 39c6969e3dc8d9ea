"""Where a model's data and frozen LDM come from, and under which terms, as far as that is known."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from ldznet.builtin_models import PREFIX as BUILTIN
from pipeline.recipe import Recipe

_OPENRAIL = "creativeml-openrail-m"
# Hub ids whose weights are Stable Diffusion v1's.
_STABLE_DIFFUSION_1 = (
    "compvis/stable-diffusion-v1-",
    "runwayml/stable-diffusion-v1-",
    "stable-diffusion-v1-5/",
)
_SCENES = (
    "Generated scenes. They show clip-art of Noto Emoji (Apache-2.0), Twemoji (CC BY 4.0: keep the credit) and Fluent "
    "Emoji (MIT), on photos of scikit-image and scikit-learn; see NOTICE."
)
_OF_FORMATS = {
    "phrasecut": "PhraseCut, built on Visual Genome (CC BY 4.0); the photos keep their owners' terms.",
    "refer": "Referring expressions on MS COCO: COCO's annotations are CC BY 4.0, its photos keep Flickr's terms.",
}
_UNKNOWN_DATA = (
    "Unknown: the data set does not tell its licence. Ask whoever made it before you pass the model on."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LdmOrigin:
    """The frozen LDM as it may be told to others: no path of this machine."""

    name: str
    hub_id: str | None
    untrained: bool
    licence: str | None  # as hub cards spell it
    terms: str


def is_untrained(ldm_folder: Path) -> bool:
    """Whether an LDM is the project's own miniature with random weights: its `model_index.json` says so."""
    index = ldm_folder / "model_index.json"
    if not index.is_file():
        return False
    content = json.loads(index.read_text(encoding="utf-8"))
    return bool(content.get("_untrained", False))


def ldm_origin(source: str, folder: Path) -> LdmOrigin:
    """What is known of an LDM.

    Args:
        source: the recipe's `ldm.source`: a folder, `builtin:NAME` or a hub id.
        folder: where it lies on this machine.
    """
    shipped = source.startswith(BUILTIN)
    hub_id = None if shipped or Path(source).exists() else source.partition("@")[0]
    untrained = is_untrained(folder)
    licence = _licence(hub_id, folder)
    if untrained:
        terms = "The frozen LDM is this project's untrained miniature: nobody else's weights are in it."
    elif shipped:
        terms = f"The frozen LDM is this project's own small one of generated scenes, under {licence}; see NOTICE."
    elif licence == _OPENRAIL:
        terms = (
            "The frozen LDM is Stable Diffusion, under CreativeML OpenRAIL-M: its use restrictions (attachment A) bind "
            "whoever uses or passes on weights that started from it."
        )
    elif licence:
        terms = f"The frozen LDM's own card names the licence `{licence}`."
    else:
        terms = (
            "The frozen LDM's licence is unknown. Where it is Stable Diffusion v1, it is CreativeML OpenRAIL-M, whose "
            "use restrictions bind whoever uses or passes on weights that started from it."
        )
    name = hub_id or (f"{source}, which comes with ldznet" if shipped else None)
    name = name or ("an untrained miniature" if untrained else "a local folder")
    return LdmOrigin(name=name, hub_id=hub_id, untrained=untrained, licence=licence, terms=terms)


def data_terms(recipe: Recipe) -> str:
    """The terms of the data set that a recipe trains on."""
    data = recipe.data_of(recipe.train_on)
    if recipe.scenes is not None and data == recipe.data:
        return _SCENES
    return _OF_FORMATS.get(data.format, _UNKNOWN_DATA)


def _licence(hub_id: str | None, folder: Path) -> str | None:
    if hub_id is not None and hub_id.lower().startswith(_STABLE_DIFFUSION_1):
        return _OPENRAIL
    card = folder / "README.md"
    if not card.is_file():
        return None
    _, fence, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        header = yaml.safe_load(rest.partition("\n---")[0]) if fence else None
    except yaml.YAMLError:
        return None
    licence = header.get("license") if isinstance(header, dict) else None
    return licence if isinstance(licence, str) else None
