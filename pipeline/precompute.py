"""Precompute of one set: list members, plan shards, have the missing ones computed, write the manifest."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from pipeline.cache import layout
from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.entry import TORCH_DTYPES
from pipeline.cache.manifest import Manifest, answer_request, find_manifest, write_manifest
from pipeline.cache.member import list_members
from pipeline.cache.plan import ShardPlan, plan_shards
from pipeline.cache.receipt import LeftOut, Receipt, read_receipt
from pipeline.cache.spec import CacheSpec
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.datasets.sample import Dataset
from pipeline.object_store.store import ObjectStore
from pipeline.recipe import Recipe

logger = logging.getLogger(__name__)

CONTEXT_TOKENS = 77


@dataclass(frozen=True, kw_only=True, slots=True)
class SetPlan:
    """What a set needs, before any work."""

    set_name: str
    data: DataConfig
    dataset: str
    spec: CacheSpec
    shards: tuple[ShardPlan, ...]

    @property
    def members(self) -> int:
        """Samples times draws."""
        return sum(len(shard.members) for shard in self.shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class SetResult:
    """What became of a set: its manifest, how many shards were computed now, and what was left out."""

    set_name: str
    manifest: Manifest
    shards_computed: int
    samples_computed: int
    left_out: tuple[LeftOut, ...]


def plan_sets(recipe: Recipe) -> list[SetPlan]:
    """Plan every set of a recipe. Loads no weights: files are hashed, shapes come from configuration."""
    folder = resolve_ldm(recipe.ldm.source)
    digest = ldm_digest(folder)
    shapes = FrozenLDM.from_pretrained(folder, components=())
    for name in recipe.sets:
        _check_timesteps(recipe, name, shapes)
    return [
        plan_set(recipe, name, ldm_digest=digest, sample_bytes=sample_bytes(recipe, name, shapes))
        for name in recipe.sets
    ]


def _check_timesteps(recipe: Recipe, set_name: str, ldm: FrozenLDM) -> None:
    high = recipe.set_named(set_name).timesteps.high
    if high > ldm.train_timesteps:
        raise UserError(
            f"sets.{set_name}.timesteps.high={high} is out of range: the frozen LDM has {ldm.train_timesteps} timesteps"
        )


def sample_bytes(recipe: Recipe, set_name: str, ldm: FrozenLDM) -> int:
    """What one sample of a set takes in a shard, in bytes: tensors exactly, mask and picture at a guess."""
    size = recipe.set_named(set_name).view.size
    numbers = sum(math.prod(shape) for shape in ldm.block_shapes(size, size, recipe.features.blocks).values())
    numbers += ldm.latent_channels * (size // ldm.latent_stride) ** 2 + CONTEXT_TOKENS * ldm.context_width
    image = size * size * 3 // 2 if recipe.features.keep_images else 0
    return numbers * TORCH_DTYPES[recipe.features.stored_dtype].itemsize + size * size // 32 + image + 4096


def plan_set(
    recipe: Recipe, set_name: str, *, ldm_digest: str, sample_bytes: int, dataset: Dataset | None = None
) -> SetPlan:
    """List the members of a set and cut them into shards. Reads annotations and digests, decodes nothing."""
    data = recipe.data_of(set_name)
    dataset = dataset or open_dataset(data)
    spec = recipe.cache_spec(set_name, ldm_digest=ldm_digest)
    digests = ContentDigests(store=dataset.store)
    samples = dataset.samples(recipe.set_named(set_name).split)
    members = list(list_members(samples, draws=spec.policy.draws, digest=digests))
    digests.save()
    if not members:
        raise UserError(
            f"the set {set_name!r} is empty: {dataset.name} has no samples in split {recipe.sets[set_name].split!r}"
        )
    per_shard = max(1, recipe.cache.shard_mebibytes * 2**20 // sample_bytes)
    shards = plan_shards(members, spec_key=spec.key, samples_per_shard=per_shard)
    return SetPlan(set_name=set_name, data=data, dataset=dataset.name, spec=spec, shards=tuple(shards))


def standing_manifest(recipe: Recipe, plan: SetPlan, *, store: ObjectStore) -> Manifest | None:
    """The manifest that holds just this plan's shards, where an earlier run wrote it: then nothing is to be done."""
    manifest = find_manifest(store, recipe.request_digest(plan.set_name))
    planned = {shard.shard_id for shard in plan.shards}
    if manifest is None or {shard.shard_id for shard in manifest.shards} != planned:
        return None
    return manifest


def missing_shards(plan: SetPlan, *, store: ObjectStore) -> list[ShardPlan]:
    """The shards of a plan that have no receipt yet."""
    prefix = layout.receipt_prefix(plan.spec.key)
    committed = {info.key.removeprefix(prefix).removesuffix(".json") for info in store.list(prefix)}
    return [shard for shard in plan.shards if shard.shard_id not in committed]


def finish_set(
    recipe: Recipe,
    plan: SetPlan,
    *,
    store: ObjectStore,
    computed: Mapping[str, Receipt],
    run_id: str | None = None,
) -> SetResult:
    """Write the manifest of a set whose shards are all committed, and let the recipe's request lead to it.

    Args:
        recipe: what asked for the set.
        plan: the set's plan.
        store: the cache.
        computed: receipts of the shards computed now, by shard id; the others' are read.
        run_id: the MLflow run that computed them.

    Raises:
        UserError: more samples are faulty than `cache.max_failed_share` allows.
    """
    receipts = []
    for shard in plan.shards:
        receipt = computed.get(shard.shard_id)
        receipt = receipt or read_receipt(store, cache_key=plan.spec.key, shard_id=shard.shard_id)
        if receipt is None:
            raise OSError(
                f"the receipt of shard {shard.shard_id} is gone: is something deleting from {store.url}?"
            )
        receipts.append(receipt)
    refuse_too_many_failures(recipe, plan, receipts)
    split = recipe.sets[plan.set_name].split
    manifest = write_manifest(store, spec=plan.spec, dataset=plan.dataset, split=split, receipts=receipts)
    answer_request(store, recipe.request_digest(plan.set_name), manifest, run_id=run_id)
    return SetResult(
        set_name=plan.set_name,
        manifest=manifest,
        shards_computed=len(computed),
        samples_computed=sum(len(receipt.samples) for receipt in computed.values()),
        left_out=tuple(member for receipt in receipts for member in receipt.left_out),
    )


def refuse_too_many_failures(recipe: Recipe, plan: SetPlan, receipts: Iterable[Receipt]) -> None:
    """Stop where the share of faulty samples is above what the recipe allows.

    Raises:
        UserError: names the first of them and its fault.
    """
    failed = [member for receipt in receipts for member in receipt.left_out_for("failed")]
    share = len(failed) / plan.members
    if failed and share > recipe.cache.max_failed_share:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {plan.members} samples of the set {plan.set_name!r} are faulty, more than "
            f"cache.max_failed_share={recipe.cache.max_failed_share} allows; the first: {first.image}, "
            f"phrase {first.phrase!r}: {first.reason}"
        )
