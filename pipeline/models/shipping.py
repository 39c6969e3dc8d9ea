"""Models that come with the package: put under `ldznet/weights/` as fp16, small enough for a repository."""

import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from ldznet.builtin_models import WEIGHTS
from ldznet.errors import UserError
from ldznet.ldm_folder import check_ldm_folder
from ldznet.modeling import network_from_pretrained
from ldznet.modeling.pretrained import CONFIG_FILE, save_network
from ldznet.prediction_config import FILE_NAME as PREDICTION_FILE
from ldznet.prediction_config import PredictionConfig
from pipeline.models.folder import CARD

_NAME = re.compile(r"\w[\w.-]*")


def ship_model(folder: Path, *, name: str, weights: Path = WEIGHTS) -> Path:
    """Put a frozen LDM (as `ldznet pretrain --show` leaves it) or a trained network where `builtin:NAME` finds it.

    An LDM is copied as it is: networks know it by its digest. A network's weights are rounded to fp16. The card
    of an LDM that was there is kept.

    Args:
        folder: an LDM in the diffusers layout, or a model folder.
        name: what `builtin:` is followed by.
        weights: the folder of all such models.

    Returns:
        The model's place.

    Raises:
        UserError: the folder is neither, or its network was trained on an LDM that does not come with the package;
            or the name is none.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a model: letters, digits, '-', '_' and '.', such as scenes-128"
        )
    place, partial = weights / name, weights / f".{name}.partial"
    if folder.exists() and place.exists() and place.samefile(folder):
        raise UserError(f"{folder} is builtin:{name} itself: there is nothing to ship")
    shutil.rmtree(partial, ignore_errors=True)
    if (folder / "model_index.json").is_file():
        check_ldm_folder(folder)
        shutil.copytree(folder, partial)
        if (place / CARD).is_file():
            shutil.copy(place / CARD, partial / CARD)
        return _put(partial, place)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} holds neither a frozen LDM (model_index.json) nor a network ({CONFIG_FILE})"
        )
    source = PredictionConfig.load(folder).ldm_source
    if source is None or not source.startswith("builtin:"):
        raise UserError(f"{folder} was trained on {source}: whoever has the package alone could not use it")
    network = network_from_pretrained(folder)
    save_network(
        partial, network.config, {name: _half(tensor) for name, tensor in network.state_dict().items()}
    )
    for extra in (PREDICTION_FILE, CARD):
        if (folder / extra).is_file():
            shutil.copy(folder / extra, partial / extra)
    return _put(partial, place)


def _put(made: Path, place: Path) -> Path:
    """Put what was made beside its place there, whole."""
    shutil.rmtree(place, ignore_errors=True)
    return made.rename(place)


def _half(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float16) if tensor.is_floating_point() else tensor
