"""Which blocks' phrase and features move the masks of the network that comes with ldznet."""

import torch

from ldznet.block_influence import BlockInfluence, InfluenceMeter
from ldznet.errors import UserError
from ldznet.modeling import network_from_pretrained
from ldznet.prediction_config import PredictionConfig
from pipeline.evaluation.run import locate_systems
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe, SystemConfig
from pipeline.results.origin import Recorded
from pipeline.training.cached_sets import required_manifest
from pipeline.training.rank_training import make_loader


class InfluenceRecord(Recorded):
    """docs/results/influence.json."""

    recipe_digest: str
    model: str
    set_name: str
    phrases: int
    blocks: tuple[BlockInfluence, ...]


def measure_influence(
    recipe: Recipe, system: SystemConfig, *, set_name: str
) -> tuple[int, tuple[BlockInfluence, ...]]:
    """Measure a network on a cached set. Returns how many phrases were measured, and what was found.

    Raises:
        UserError: no such network, or the set's features are missing or of another LDM; or no batch came out whole.
    """
    (located,) = locate_systems(recipe, [system])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = open_store(recipe.cache.url)
    manifest = required_manifest(store, recipe, set_name)
    if PredictionConfig.load(located.folder).ldm_digest not in {None, manifest.spec.ldm_digest}:
        raise UserError(
            f"{located.folder} was trained on features of another LDM than this recipe's: name the right ldm.source"
        )
    loader = make_loader(
        recipe,
        store,
        manifest,
        batch_size=recipe.evaluate.batch_size,
        shuffle=False,
    )
    meter = InfluenceMeter(network=network_from_pretrained(located.folder, device=device))
    phrases = 0
    for batch in loader.epoch(Position()):
        whole = int((batch.weight > 0).sum())
        if whole < len(batch.keys):
            continue  # the last one, padded with repeats
        phrases += whole
        here = batch.to(device, torch.float32)
        meter.update(latents=here.latents, context=here.context, features=here.features, images=here.images)
    if not phrases:
        raise UserError(
            f"evaluate.batch_size={recipe.evaluate.batch_size} is more than the set {set_name!r} has"
        )
    return phrases, meter.blocks


def require_measurable(recipe: Recipe) -> None:
    """See before any work that a batch has another sample to take from.

    Raises:
        UserError: it has not.
    """
    if recipe.evaluate.batch_size < 2:
        raise UserError("the influence of another sample needs evaluate.batch_size of 2 or more")
