"""Precompute of one set: list members, plan shards, have the missing ones computed, write the manifest."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import compress

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.manifest import (
    Manifest,
    answer_request,
    find_answer,
    find_manifest,
    read_left_out,
    write_manifest,
)
from pipeline.cache.member_table import MemberTable, key_numbers
from pipeline.cache.receipt import LeftOut, read_receipts
from pipeline.cache.spec import CacheSpec
from pipeline.cache.stored_type import TORCH_DTYPES, feature_bytes, plain_dtype
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.datasets.sample import Dataset
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.increment import Increment, KeptShard, PlannedWork, committed_ids, plan_increment
from pipeline.recipe import Recipe

logger = logging.getLogger(__name__)

CONTEXT_TOKENS = 77

ShardName = tuple[str, str]  # cache key, shard id


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedSet:
    """A set's members under its numeric specification. Close the table: its records lie in a temporary file."""

    set_name: str
    data: DataConfig
    dataset: str
    split: str
    spec: CacheSpec
    table: MemberTable
    sample_bytes: int  # about what one takes in a shard

    @property
    def members(self) -> int:
        """Samples times draws."""
        return len(self.table)


@dataclass(frozen=True, kw_only=True, slots=True)
class SetPlan(ListedSet):
    """What a set needs, before any work."""

    increment: Increment


@dataclass(frozen=True, kw_only=True, slots=True)
class SetResult:
    """What became of a set: its manifest, how many shards were computed now, and what was left out."""

    set_name: str
    manifest: Manifest
    shards_computed: int
    samples_computed: int
    left_out: tuple[LeftOut, ...]


def list_sets(recipe: Recipe) -> Iterator[ListedSet]:
    """List the members of a recipe's sets, one by one. Loads no weights: files are hashed, shapes are configured."""
    folder = resolve_ldm(recipe.ldm.source)
    digest = ldm_digest(folder)
    shapes = FrozenLDM.from_pretrained(folder, components=())
    for name in recipe.sets:
        _check_timesteps(recipe, name, shapes)
    for name in recipe.sets:
        yield list_set(recipe, name, ldm_digest=digest, shapes=shapes)


def plan_sets(recipe: Recipe, *, store: ObjectStore) -> Iterator[SetPlan]:
    """List and plan the sets of a recipe, one by one."""
    yield from plan_listed(recipe, list_sets(recipe), store=store)


def plan_listed(recipe: Recipe, listed: Iterable[ListedSet], *, store: ObjectStore) -> Iterator[SetPlan]:
    """Plan sets that are listed, one by one."""
    elsewhere: set[ShardName] = set()
    for one in listed:
        plan = plan_set(recipe, one, store=store, elsewhere=elsewhere)
        elsewhere.update(work.name for work in plan.increment.work)
        yield plan


def _check_timesteps(recipe: Recipe, set_name: str, ldm: FrozenLDM) -> None:
    high = recipe.set_named(set_name).timesteps.high
    if high > ldm.train_timesteps:
        raise UserError(
            f"sets.{set_name}.timesteps.high={high} is out of range: the frozen LDM has {ldm.train_timesteps} timesteps"
        )


def sample_bytes(spec: CacheSpec, ldm: FrozenLDM) -> int:
    """What one sample takes in a shard, in bytes: tensors exactly, mask and picture at a guess."""
    size, features = spec.policy.view.size, spec.features
    blocks = sum(
        feature_bytes(shape, stored_dtype=features.stored_dtype, scale_group=features.scale_group)
        for shape in ldm.block_shapes(size, size, features.blocks).values()
    )
    numbers = ldm.latent_channels * (size // ldm.latent_stride) ** 2 + CONTEXT_TOKENS * ldm.context_width
    plain = numbers * TORCH_DTYPES[plain_dtype(features.stored_dtype)].itemsize
    image = size * size * 3 // 2 if features.keep_images else 0
    return blocks + plain + size * size // 32 + image + 4096


def list_set(
    recipe: Recipe, set_name: str, *, ldm_digest: str, shapes: FrozenLDM, dataset: Dataset | None = None
) -> ListedSet:
    """List the members of a set. Reads annotations and digests, decodes nothing."""
    data = recipe.data_of(set_name)
    dataset = dataset or open_dataset(data)
    spec = recipe.cache_spec(set_name, ldm_digest=ldm_digest)
    split = recipe.set_named(set_name).split
    digests = ContentDigests(store=dataset.store)
    samples = digests.ahead(dataset.samples(split))
    table = MemberTable.from_samples(samples, draws=spec.policy.draws, digest=digests)
    digests.save()
    if not len(table):
        raise UserError(f"the set {set_name!r} is empty: {dataset.name} has no samples in split {split!r}")
    return ListedSet(
        set_name=set_name,
        data=data,
        dataset=dataset.name,
        split=split,
        spec=spec,
        table=table,
        sample_bytes=sample_bytes(spec, shapes),
    )


def samples_per_shard(recipe: Recipe, listed: ListedSet) -> int:
    """How many samples a shard of the recipe's size holds."""
    return max(1, recipe.cache.shard_mebibytes * 2**20 // listed.sample_bytes)


def plan_set(
    recipe: Recipe, listed: ListedSet, *, store: ObjectStore, elsewhere: Collection[ShardName] = ()
) -> SetPlan:
    """Take over what the cache holds of a set, and cut the rest into shards; `elsewhere`: work of other sets."""
    increment = plan_increment(
        listed.table,
        spec=listed.spec,
        samples_per_shard=samples_per_shard(recipe, listed),
        store=store,
        elsewhere=elsewhere,
    )
    _refuse_what_has_no_source(listed.set_name, listed.spec, increment)
    known = {field.name: getattr(listed, field.name) for field in fields(ListedSet)}
    return SetPlan(**known, increment=increment)


def _refuse_what_has_no_source(set_name: str, spec: CacheSpec, increment: Increment) -> None:
    source = spec.features.stored_from
    if source is not None and any(work.source is None for work in increment.work):
        raise UserError(
            f"features.stored_from={source}, but the cache does not hold all of the set {set_name!r} in {source}: run "
            f"`ldznet precompute` with features.stored_dtype={source} and without stored_from first"
        )


def standing_manifest(recipe: Recipe, plan: SetPlan, *, store: ObjectStore) -> Manifest | None:
    """The manifest that holds just this plan's shards, where an earlier run wrote it: then nothing is to be done.

    Raises:
        UserError: more of its samples are faulty than `cache.max_failed_share` allows.
    """
    manifest = find_manifest(store, recipe.request_digest(plan.set_name))
    if manifest is None or any(plan.increment.work) or manifest.cache_key != plan.spec.key:
        return None
    kept = {shard.source.reference.object_key for shard in plan.increment.kept}
    if {shard.object_key for shard in manifest.shards} != kept:
        return None
    refuse_too_many_failures(recipe, plan, (member for _, member in read_left_out(store, manifest)))
    return manifest


def missing_work(plan: SetPlan, *, store: ObjectStore) -> list[PlannedWork]:
    """What a plan needs that has no receipt yet."""
    work = list(plan.increment.work)
    specs = {one.spec.key: one.spec for one in work}
    committed = {key: committed_ids(store, spec) for key, spec in specs.items()}
    return [one for one in work if one.shard.shard_id not in committed[one.spec.key]]


def announce_specs(plans: Iterable[SetPlan], *, store: ObjectStore) -> None:
    """Write the numeric specifications of what is about to be committed: an interrupted run can be told by them."""
    specs = {work.spec.key: work.spec for plan in plans for work in plan.increment.work}
    for key, spec in specs.items():
        store.create(layout.spec_key(key), spec.canonical().encode())


def finish_set(
    recipe: Recipe,
    plan: SetPlan,
    *,
    store: ObjectStore,
    computed: Mapping[ShardName, CommittedShard],
    run_id: str | None = None,
) -> SetResult:
    """Write the manifest of a set whose shards are all committed, and let the recipe's request lead to it.

    Args:
        recipe: what asked for the set.
        plan: the set's plan.
        store: the cache.
        computed: the shards computed now; the others' receipts are read.
        run_id: the MLflow run that computed them.

    Raises:
        UserError: more samples are faulty than `cache.max_failed_share` allows.
    """
    committed = _all_committed(plan, store=store, computed=computed)
    shards = [committed[work.name] for work in plan.increment.fresh]
    shards += [_joined(kept, committed) for kept in plan.increment.kept]
    shards.sort(key=lambda shard: shard.reference.object_key)
    left_out = tuple(member for shard in shards for member in shard.left_out)
    refuse_too_many_failures(recipe, plan, left_out)
    _tell_of_other_hardware(plan, shards)
    manifest = write_manifest(store, spec=plan.spec, dataset=plan.dataset, split=plan.split, shards=shards)
    request = recipe.request_digest(plan.set_name)
    if run_id is None:  # the run that computed the shards stays their source
        answer = find_answer(store, request)
        run_id = answer.run_id if answer else None
    answer_request(store, request, manifest, run_id=run_id)
    ours = [committed[work.name] for work in plan.increment.work if work.name in computed]
    return SetResult(
        set_name=plan.set_name,
        manifest=manifest,
        shards_computed=len(ours),
        samples_computed=sum(len(shard.rows) for shard in ours),
        left_out=left_out,
    )


def _all_committed(
    plan: SetPlan, *, store: ObjectStore, computed: Mapping[ShardName, CommittedShard]
) -> dict[ShardName, CommittedShard]:
    work = list(plan.increment.work)
    committed = {one.name: computed[one.name] for one in work if one.name in computed}
    for cache_key in sorted({one.spec.key for one in work}):
        wanted = [
            one.shard.shard_id for one in work if one.spec.key == cache_key and one.name not in committed
        ]
        found = read_receipts(store, cache_key=cache_key, shard_ids=wanted)
        for shard_id, receipt in zip(wanted, found, strict=True):
            if receipt is None:
                raise OSError(
                    f"the receipt of shard {shard_id} is gone: is something deleting from {store.url}?"
                )
            committed[cache_key, shard_id] = CommittedShard.from_receipts(receipt)
    return committed


def _joined(kept: KeptShard, committed: Mapping[ShardName, CommittedShard]) -> CommittedShard:
    shard = kept.source if kept.conversion is None else committed[kept.conversion.name]
    return shard if kept.column is None else shard.with_column(committed[kept.column.name])


def _tell_of_other_hardware(plan: SetPlan, shards: Iterable[CommittedShard]) -> None:
    """An increment or a repair elsewhere may round otherwise: say what differs."""
    first, *others = {one.model_dump_json(): one for shard in shards for one in shard.environments}.values()
    for other in others:
        logger.warning(
            "%s: shards were computed on unequal systems, so that equal inputs may differ in the last bits: %s",
            plan.set_name,
            first.difference(other),
        )


def refuse_too_many_failures(recipe: Recipe, listed: ListedSet, left_out: Iterable[LeftOut]) -> None:
    """Stop where the share of faulty samples is above what the recipe allows.

    Those that the set no longer has do not count: data that was mended since has other keys.

    Raises:
        UserError: names the first of them and its fault.
    """
    failed = [member for member in left_out if member.why == "failed"]
    there = listed.table.rows_with(key_numbers(member.key for member in failed)) >= 0
    failed = list(compress(failed, there))
    share = len(failed) / listed.members
    if failed and share > recipe.cache.max_failed_share:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {listed.members} samples of the set {listed.set_name!r} are faulty, more than "
            f"cache.max_failed_share={recipe.cache.max_failed_share} allows; the first: {first.image}, "
            f"phrase {first.phrase!r}: {first.reason}"
        )
