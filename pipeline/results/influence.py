"""Which blocks' phrase and features move the masks of the network that comes with ldznet."""

import torch
from pydantic import Field

from ldznet.block_influence import BlockInfluence, InfluenceMeter
from ldznet.config import Config
from ldznet.modeling import network_from_pretrained
from pipeline.evaluation.run import locate_systems
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe, SystemConfig
from pipeline.training.cached_sets import required_manifest
from pipeline.training.rank_training import make_loader


class InfluenceRecord(Config):
    """docs/results/influence.json."""

    command: str
    minutes: dict[str, float] = Field(default_factory=dict)
    recipe_digest: str
    model: str
    set_name: str
    phrases: int
    blocks: tuple[BlockInfluence, ...]
    machine: dict[str, str]
    versions: dict[str, str]
    date: str
    note: str = ""  # what a person says of the figures


def measure_influence(
    recipe: Recipe, system: SystemConfig, *, set_name: str
) -> tuple[int, tuple[BlockInfluence, ...]]:
    """Measure a network on a cached set. Returns how many phrases were measured, and what was found.

    Raises:
        UserError: no such network, or the set's features are missing.
    """
    (located,) = locate_systems(recipe, [system])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = open_store(recipe.cache.url)
    loader = make_loader(
        recipe,
        store,
        required_manifest(store, recipe, set_name),
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
    return phrases, meter.blocks
