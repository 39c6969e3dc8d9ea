"""What a network starts from: the frozen LDM's UNet, random weights, or a network that was trained before."""

import logging
from functools import partial
from pathlib import Path

import torch

from ldznet.errors import UserError
from ldznet.ldm_folder import resolve_ldm
from ldznet.modeling import SegmentationNetwork, initialise_from_ldm, network_from_pretrained
from ldznet.modeling.config import NetworkConfig
from ldznet.modeling.pretrained import read_network_config
from pipeline.models.folder import model_digest
from pipeline.models.registered import pinned, resolve_model
from pipeline.recipe import Recipe
from pipeline.tracking.config import store_uri

logger = logging.getLogger(__name__)

_COMPARED = partial(NetworkConfig.model_dump, exclude={"gradient_checkpointing", "head_init"})


def starting_digest(recipe: Recipe) -> str | None:
    """Digest of the trained network that `network.init_from` names, whatever its folder or alias; None: none.

    Raises:
        UserError: there is no such model.
    """
    return model_digest(_folder(recipe)) if recipe.network.starts_trained else None


def pinned_start(recipe: Recipe) -> Recipe:
    """The recipe with the version that an alias in `network.init_from` names now: it may be moved while ranks restart.

    Raises:
        UserError: there is no such model.
    """
    start = pinned(recipe.network.init_from, _registry(recipe))
    return recipe.model_copy(update={"network": recipe.network.model_copy(update={"init_from": start})})


@torch.no_grad()
def start_network(network: SegmentationNetwork, recipe: Recipe) -> str:
    """Give a new network the weights that the recipe says it starts from. Returns what was done, in a line.

    Raises:
        UserError: there is no such model or LDM, or the model is another kind of network.
    """
    if recipe.network.init_from == "random":
        return "starts from random weights"
    if not recipe.network.starts_trained:
        return str(initialise_from_ldm(network, resolve_ldm(recipe.ldm.source)))
    folder = _folder(recipe)
    _check_equal(network.config, read_network_config(folder), reference=recipe.network.init_from)
    network.load_state_dict(network_from_pretrained(folder).state_dict())
    return f"starts from the trained network {recipe.network.init_from}"


def _folder(recipe: Recipe) -> Path:
    return resolve_model(recipe.network.init_from, _registry(recipe))


def _registry(recipe: Recipe) -> str:
    """Where runs are recorded, as `ldznet evaluate` has it."""
    return store_uri(recipe.tracking, Path(recipe.output_folder))


def _check_equal(asked: NetworkConfig, found: NetworkConfig, *, reference: str) -> None:
    asked_for, there = _COMPARED(asked), _COMPARED(found)
    different = [name for name in asked_for if asked_for[name] != there[name]]
    if different:
        name = different[0]
        raise UserError(
            f"network.init_from={reference} has {name}={there[name]!r} where this recipe asks for "
            f"{asked_for[name]!r}: ask for the same, or start from ldm"
        )
