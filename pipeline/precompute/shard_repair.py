"""Repair of shards that a verification found bad: which, of which members, and how they are computed again."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard, ShardReference
from pipeline.cache.index import member_key
from pipeline.cache.manifest import Manifest, committed_shards
from pipeline.cache.mending import Mended, mend_shard, restore_receipt
from pipeline.cache.plan import ShardPlan
from pipeline.cache.receipt import Receipt
from pipeline.cache.shard_check import Fault
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.commit import describe_shard, environment, pack_shard
from pipeline.precompute.conversion import describe_conversion, pack_conversion
from pipeline.precompute.networks import Networks
from pipeline.precompute.scratch import shard_folder
from pipeline.precompute.watch import ShardWatch

logger = logging.getLogger(__name__)

_OF_OBJECTS = frozenset({"gone", "cut", "damaged", "unreadable"})
_OF_RECEIPTS = frozenset({"receipt gone", "receipt damaged"})


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenShard:
    """A shard to compute again, and the keys of all its members, those left out included, in key order."""

    reference: ShardReference
    member_keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairNeeds:
    """What a manifest's faults ask for."""

    broken: tuple[BrokenShard, ...]  # to be computed again
    receipts: tuple[CommittedShard, ...]  # whose receipts alone are to be written again
    manifest: bool  # parts of it are bad, or it names an object that has been replaced

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.broken or self.receipts or self.manifest)


def repair_needs(store: ObjectStore, manifest: Manifest, faults: Iterable[Fault]) -> RepairNeeds:
    """Sort a manifest's faults by what mends them.

    Raises:
        OSError: a shard is bad, and so is the manifest's index, which tells its members.
    """
    hit: dict[str, set[str]] = {}
    of_manifest = False
    for fault in faults:
        if fault.shard is None:
            of_manifest = True
        else:
            hit.setdefault(fault.shard.object_key, set()).add(fault.what)
            of_manifest = of_manifest or fault.what in {"receipt of another object", "index differs"}
    if not any(whats & (_OF_OBJECTS | _OF_RECEIPTS) for whats in hit.values()):
        return RepairNeeds(broken=(), receipts=(), manifest=of_manifest)
    broken, receipts = [], []
    for shard in committed_shards(store, manifest):
        for part in (shard.reference, *shard.reference.columns):
            whats = hit.get(part.object_key, set())
            # A column's receipt holds what the manifest does not tell: it is made by computing the column again.
            if whats & _OF_OBJECTS or (whats & _OF_RECEIPTS and part is not shard.reference):
                broken.append(BrokenShard(reference=part, member_keys=member_keys(shard)))
            elif whats & _OF_RECEIPTS:
                receipts.append(shard)
    return RepairNeeds(broken=tuple(broken), receipts=tuple(receipts), manifest=of_manifest)


def member_keys(shard: CommittedShard) -> tuple[str, ...]:
    """Of all its members, those left out included, in order."""
    there = (member_key(shard.rows, row) for row in range(len(shard.rows)))
    return tuple(sorted({*there, *(member.key for member in shard.left_out)}))


def restore_receipts(store: ObjectStore, shards: Sequence[CommittedShard]) -> None:
    """Write receipts again whose objects are sound. Computes nothing."""
    for shard in shards:
        receipt = restore_receipt(store, shard)
        logger.info("the receipt of shard %s is written again", receipt.shard_id)


def repair_shard(
    plan: ShardPlan,
    *,
    spec: CacheSpec,
    networks: Networks,
    data: ObjectStore,
    store: ObjectStore,
    watch: ShardWatch | None = None,
    decoders: int = 2,
) -> Receipt:
    """Compute a shard again and put it right in the cache.

    The same bytes go back under the same name, and the receipt stands. Other hardware or libraries may round
    otherwise: then the shard gets a new object and a new receipt, which is told, and every manifest that names the
    old one must be renewed (`pipeline.cache.mending.renew_manifest`).

    Args:
        plan: the shard's identity and members.
        spec: its numeric specification.
        networks: the frozen networks.
        data: where images and masks are.
        store: the cache.
        watch: told how far it is.
        decoders: threads that decode.
    """
    watch = watch or ShardWatch()
    with shard_folder() as folder:
        packed = pack_shard(
            plan, spec=spec, networks=networks, data=data, folder=folder, watch=watch, decoders=decoders
        )
        with watch.stage("uploading"):
            fresh = describe_shard(
                plan,
                packed,
                object_key=layout.shard_key(spec.key, plan.shard_id, packed.tar.sha256),
                environment=environment(networks.ldm),
            )
            return _told(mend_shard(store, tar=packed.tar.path, fresh=fresh))


def repair_conversion(
    source: CommittedShard, *, spec: CacheSpec, shard_id: str, store: ObjectStore
) -> Receipt:
    """Convert a shard again and put it right in the cache, as `repair_shard` does."""
    with shard_folder() as folder:
        tar = pack_conversion(source, spec=spec, store=store, folder=folder)
        fresh = describe_conversion(source, tar, spec=spec, shard_id=shard_id)
        return _told(mend_shard(store, tar=tar.path, fresh=fresh))


def _told(mended: Mended) -> Receipt:
    shard_id = mended.receipt.shard_id
    if mended.how == "replaced":
        logger.warning(
            "shard %s came out with other bytes than the first time and has a new object: %s",
            shard_id,
            mended.difference
            or "the systems are equal as far as they are recorded; do the data set's files have other names now?",
        )
    else:
        logger.info("shard %s: %s", shard_id, mended.how)
    return mended.receipt
