"""Validation on one, two and three ranks: each sample of the set once, and the same figures."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytestmark = pytest.mark.long  # `make test-cluster`

WORLDS = (3, 2, 1)  # of a set of nine, four a batch and rank: nothing divides


def validate_all(rank: int, folder: str, recipe_path: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    for world in WORLDS[: len(WORLDS) - rank]:
        meet = f"file://{folder}/meet-{world}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
        found = validate(Path(recipe_path))
        (Path(folder) / f"{world}-{rank}.json").write_text(json.dumps(found))
        dist.barrier()
        dist.destroy_process_group()


def validate(recipe_path: Path) -> dict[str, Any]:
    """This rank's samples, and the figures of all."""
    from ldznet.ldm_folder import ldm_digest, resolve_ldm
    from ldznet.loss import mask_loss
    from pipeline.evaluation.scoring import run_network
    from pipeline.loading.sample_order import Position
    from pipeline.object_store.opening import open_store
    from pipeline.online.features import OnlineFeatures
    from pipeline.recipe_file import load_recipe
    from pipeline.tracking.tracker import Tracker
    from pipeline.training import ranks
    from pipeline.training.cached_sets import CachedSets
    from pipeline.training.engine import build_engine
    from pipeline.training.rank_training import Validator, make_network, make_validation_source

    overrides = [f"train.workers={ranks.world_size()}", "train.batch_size=12", "train.engine=ddp"]
    recipe = load_recipe(recipe_path, overrides)
    ranks.seed_everything(0)
    engine = build_engine(make_network(recipe), forward=run_network, loss=mask_loss, config=recipe.train)
    store = open_store(recipe.cache.url)
    cached = CachedSets.find(recipe, store)
    with OnlineFeatures(recipe, store=store, cached=cached) as online:
        source = make_validation_source(
            recipe,
            "val",
            store=store,
            cached=cached,
            online=online,
            ldm_digest=ldm_digest(resolve_ldm(recipe.ldm.source)),
        )
        batches = list(source.epoch(Position()))
        keys = [
            key
            for batch in batches
            for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True)
            if weight
        ]
        figures = Validator(source, tracker=Tracker(recipe.tracking, folder=recipe_path.parent))(engine)
    return {"keys": keys, "batches": len(batches), "figures": dict(figures)}


@pytest.mark.slow
def test_each_sample_counts_once_whatever_the_number_of_ranks(
    tmp_path: Path, small_recipe: Callable[..., Path], precompute_here: Callable[..., None]
) -> None:
    recipe = small_recipe()
    precompute_here(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        mp.spawn(validate_all, (str(tmp_path), str(recipe)), nprocs=max(WORLDS))
    found = {
        world: [json.loads((tmp_path / f"{world}-{rank}.json").read_text()) for rank in range(world)]
        for world in WORLDS
    }
    alone = found[1][0]
    assert len(set(alone["keys"])) == len(alone["keys"]) == 9
    for world in WORLDS:
        assert sorted(key for rank in found[world] for key in rank["keys"]) == sorted(alone["keys"])
        assert len({rank["batches"] for rank in found[world]}) == 1, "ranks would wait for each other"
        for rank in found[world]:
            assert rank["figures"] == pytest.approx(alone["figures"], rel=1e-6)
    assert 0 < alone["figures"]["miou"] < 1
