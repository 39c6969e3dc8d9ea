"""The cells of a probe: which rows of the cache hold which timestep."""

import numpy as np
from numpy.typing import NDArray

from ldznet.errors import UserError
from pipeline.cache.index import key_bytes
from pipeline.cache.member_table import MemberTable
from pipeline.loading.loader import SampleReader
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.sets import list_sets
from pipeline.probing.cell import CellRows, ProbedCache
from pipeline.recipe import Recipe
from pipeline.training.cached_sets import required_manifest


def probed_cache(recipe: Recipe, store: ObjectStore) -> ProbedCache:
    """The manifests that a probe reads.

    Raises:
        UserError: a set has no grid of timesteps, two have different ones, or one was not precomputed.
    """
    grids = {}
    for name in recipe.probe.sets:
        grids[name] = recipe.set_named(name).timesteps.grid
        if grids[name] is None:
            raise UserError(
                f"a probe looks at several timesteps: give sets.{name}.timesteps a grid, such as "
                "{grid: [100, 200, 300]}, and precompute"
            )
    if len(set(grids.values())) > 1:
        raise UserError("the sets that a probe trains and scores on need one and the same timesteps.grid")
    return ProbedCache(
        url=store.url,
        manifests=tuple(required_manifest(store, recipe, name) for name in recipe.probe.sets),
    )


def probed_blocks(recipe: Recipe) -> tuple[int, ...]:
    """The blocks to probe.

    Raises:
        UserError: one that is not cached.
    """
    blocks = recipe.probe.blocks or recipe.features.blocks
    missing = sorted(set(blocks) - set(recipe.features.blocks))
    if missing:
        raise UserError(f"probe.blocks names block {missing[0]}, which features.blocks does not cache")
    return tuple(sorted(set(blocks)))


def cells_of(recipe: Recipe, store: ObjectStore, cache: ProbedCache) -> list[CellRows]:
    """One a timestep. Lists the data sets again, for only members know their draws."""
    wanted = recipe.probe.sets
    tables = {listed.set_name: listed.table for listed in list_sets(recipe) if listed.set_name in wanted}
    grid = recipe.set_named(wanted[0]).timesteps.grid
    assert grid is not None, "probed_cache() comes first"
    by_set = [
        _rows_by_draw(SampleReader(store=store, manifest=manifest), tables[name], len(grid))
        for name, manifest in zip(wanted, cache.manifests, strict=True)
    ]
    return [
        CellRows(timestep=timestep, rows=tuple(rows[draw] for rows in by_set))
        for draw, timestep in enumerate(grid)
    ]


def _rows_by_draw(reader: SampleReader, table: MemberTable, draws: int) -> list[NDArray[np.int64]]:
    members = table.rows_with(key_bytes(reader.index))
    if (members < 0).any():
        raise UserError(
            f"{reader.manifest.dataset} has changed since its features were computed: run `ldznet precompute` again"
        )
    drawn = table.draws[members]
    return [np.flatnonzero(drawn == draw) for draw in range(draws)]
