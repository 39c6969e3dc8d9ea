"""What of a cache no manifest names, and what keeps some of that from being removed."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.cache_keys import SHORT_DIGITS, require_cache
from pipeline.cache.inventory import read_spec
from pipeline.cache.lease import LEASE_PREFIX, LeaseState, family
from pipeline.cache.manifest import Manifest, read_answer, read_manifest
from pipeline.cache.receipt import read_receipt
from pipeline.cache.sealed import BrokenSealError, DamagedDocumentError
from pipeline.object_store.faults import UnavailableObjectError
from pipeline.object_store.store import ObjectInfo, ObjectStore

Kind = Literal["request", "manifest", "part of a manifest", "receipt", "shard", "specification", "lease"]

# What leads to something goes before it: killed anywhere, nothing is left that leads nowhere.
ORDER: Final[tuple[Kind, ...]] = (
    "request",
    "manifest",
    "part of a manifest",
    "receipt",
    "shard",
    "specification",
    "lease",
)

_NAMES: Final[dict[Kind, re.Pattern[str]]] = {
    "request": re.compile(r"requests/[0-9a-f]+\.json"),
    "manifest": re.compile(r"[0-9a-f]{64}/manifests/[0-9a-f]{32}\.json"),
    "part of a manifest": re.compile(
        r"[0-9a-f]{64}/manifests/[0-9a-f]{32}(?:(?:\.column-\d+)?\.index|\.left_out\.jsonl|\.shards\.txt)"
    ),
    "receipt": re.compile(r"[0-9a-f]{64}/receipts/[0-9a-f]{32}\.json"),
    "shard": re.compile(r"[0-9a-f]{64}/shards/[0-9a-f]{32}-[0-9a-f]{16}\.tar"),
    "specification": re.compile(r"specs/[0-9a-f]{64}\.json"),
}
_UNDER_A_KEY: Final[tuple[Kind, ...]] = ("manifest", "part of a manifest", "receipt", "shard")
_DIGITS: Final = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """An object that may go."""

    info: ObjectInfo
    kind: Kind
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """A specification whose manifests are removed on purpose, or one manifest of it."""

    cache_key: str
    manifest_id: str | None = None

    def covers(self, cache_key: str, manifest_id: str) -> bool:
        """Whether this manifest goes."""
        return cache_key == self.cache_key and self.manifest_id in {None, manifest_id}


@dataclass(kw_only=True)
class Findings:
    """What may go, and what stays though no manifest names it."""

    garbage: list[Garbage] = field(default_factory=list)
    young: list[ObjectInfo] = field(default_factory=list)  # too young to go
    leased: dict[str, str] = field(default_factory=dict)  # cache keys that a running job holds -> who
    lent: dict[str, list[str]] = field(
        default_factory=dict
    )  # shards of what is dropped -> cache keys that name them
    foreign: int = 0  # objects that are not named like a cache's; never touched
    running: bool = False  # a lease is live

    @property
    def size(self) -> int:
        """Bytes that go."""
        return sum(one.info.size for one in self.garbage)


def find_garbage(
    store: ObjectStore,
    leases: Collection[LeaseState],
    *,
    now: float,
    older_than_s: float,
    drop: Drop | None = None,
) -> Findings:
    """Look through a whole cache: one listing, every manifest, every request. Changes nothing.

    The listing begins after `leases` were listed: see `pipeline.cache.lease`.

    Args:
        store: the cache.
        leases: all of them.
        now: by the store's clock.
        older_than_s: what is younger stays, unless it is dropped.
        drop: manifests to be removed on purpose.

    Raises:
        UserError: the URL holds no cache, or a manifest cannot be read, so that what it names is not known.
    """
    return _Search(store, leases, now=now, older_than_s=older_than_s, drop=drop).run()


class _Search:
    def __init__(
        self,
        store: ObjectStore,
        leases: Collection[LeaseState],
        *,
        now: float,
        older_than_s: float,
        drop: Drop | None,
    ) -> None:
        self._store, self._leases, self._now, self._older_than_s = store, leases, now, older_than_s
        self._drop = drop
        self._found = Findings(running=any(lease.live for lease in leases))
        self._held: dict[Kind, dict[str, ObjectInfo]] = {kind: {} for kind in ORDER}
        self._named: dict[str, set[str]] = {}  # object key -> cache keys of the manifests that name it
        self._dropped: set[str] = set()  # object keys that dropped manifests name, themselves included
        self._going: set[str] = set()

    def run(self) -> Findings:
        self._list()
        self._find_leased()
        self._read_manifests()
        self._judge_requests()
        self._judge_manifests()
        self._judge_receipts()
        self._judge_shards()
        self._judge_specs()
        self._judge_leases()
        return self._found

    def _list(self) -> None:
        for info in self._store.list():
            kind = next((kind for kind, name in _NAMES.items() if name.fullmatch(info.key)), None)
            if kind is not None:
                self._held[kind][info.key] = info
            elif not info.key.startswith(LEASE_PREFIX):
                self._found.foreign += 1
        if not any(self._held.values()):
            require_cache(self._store)

    def _find_leased(self) -> None:
        holders = {lease.family: lease.holder for lease in self._leases if lease.live}
        if not holders:
            return
        lying = {layout.cache_key_of(key) for kind in _UNDER_A_KEY for key in self._held[kind]}
        for cache_key in lying | {_digits(key) for key in self._held["specification"]}:
            spec = read_spec(self._store, cache_key)
            name = family(spec) if spec else None
            if name in holders:
                self._found.leased[cache_key] = str(holders[name] or "another job")
            elif name is None:  # whose it is cannot be told
                self._found.leased[cache_key] = "perhaps one of the jobs at work"
        if self._drop and self._drop.cache_key in self._found.leased:
            raise UserError(
                f"a job is at work on {self._drop.cache_key[:SHORT_DIGITS]}… in {self._store.url} "
                f"({self._found.leased[self._drop.cache_key]}): wait until it ends"
            )

    def _read_manifests(self) -> None:
        for key in self._held["manifest"]:
            cache_key, manifest_id = layout.cache_key_of(key), _digits(key)
            dropped = self._drops(cache_key, manifest_id)
            try:
                manifest = read_manifest(self._store, cache_key=cache_key, manifest_id=manifest_id)
            except DamagedDocumentError as error:
                if dropped:  # what it named is garbage like any other
                    self._dropped.add(key)
                    continue
                raise UserError(
                    f"nothing was collected, for what a manifest names is not known: {error}; "
                    f"`ldznet cache collect --drop {cache_key[:SHORT_DIGITS]}/{manifest_id}` gives it up"
                ) from error
            for name in _names(manifest):
                if dropped:
                    self._dropped.add(name)
                else:
                    self._named.setdefault(name, set()).add(cache_key)
        for key in self._dropped & self._named.keys() & self._held["shard"].keys():
            self._found.lent[key] = sorted(self._named[key])

    def _drops(self, cache_key: str, manifest_id: str) -> bool:
        return self._drop is not None and self._drop.covers(cache_key, manifest_id)

    def _offer(
        self, kind: Kind, info: ObjectInfo, why: str, *, cache_key: str, dropped: bool = False
    ) -> None:
        if cache_key in self._found.leased:
            return
        if not dropped and self._now - info.modified < self._older_than_s:
            self._found.young.append(info)
            return
        self._found.garbage.append(Garbage(info=info, kind=kind, why="dropped" if dropped else why))
        self._going.add(info.key)

    def _judge_requests(self) -> None:
        for key, info in self._held["request"].items():
            try:
                answer = read_answer(self._store, key)
            except (KeyError, BrokenSealError):  # gone since, or damaged, which `verify` tells
                continue
            manifest = layout.manifest_key(answer.cache_key, answer.manifest_id)
            dropped = manifest in self._dropped
            if dropped or manifest not in self._held["manifest"]:
                self._offer(
                    "request", info, "leads to no manifest", cache_key=answer.cache_key, dropped=dropped
                )

    def _judge_manifests(self) -> None:
        for key in self._held["manifest"].keys() & self._dropped:
            info = self._held["manifest"][key]
            self._offer("manifest", info, "", cache_key=layout.cache_key_of(key), dropped=True)
        for key, info in self._held["part of a manifest"].items():
            if key not in self._named:
                cache_key = layout.cache_key_of(key)
                dropped = self._drops(cache_key, _digits(key))
                self._offer(
                    "part of a manifest",
                    info,
                    "its manifest was never finished",
                    cache_key=cache_key,
                    dropped=dropped,
                )

    def _judge_receipts(self) -> None:
        for key, info in self._held["receipt"].items():
            if key not in self._named:
                self._offer(
                    "receipt",
                    info,
                    "no manifest names its shard",
                    cache_key=layout.cache_key_of(key),
                    dropped=key in self._dropped,
                )

    def _judge_shards(self) -> None:
        for key, info in self._held["shard"].items():
            if key in self._named:
                continue
            cache_key, dropped = layout.cache_key_of(key), key in self._dropped
            receipt = layout.receipt_key(cache_key, _digits(key))
            if receipt in self._going:
                self._offer("shard", info, "no manifest names it", cache_key=cache_key, dropped=dropped)
            elif receipt not in self._held["receipt"]:
                self._offer("shard", info, "it has no receipt", cache_key=cache_key, dropped=dropped)
            elif receipt not in self._named:  # its receipt is too young to go: they stay together
                self._found.young.append(info)
            elif self._is_anothers(receipt, key):
                self._offer(
                    "shard", info, "its receipt names another object", cache_key=cache_key, dropped=dropped
                )

    def _is_anothers(self, receipt_key: str, object_key: str) -> bool:
        """Whether the receipt of a shard in use names another object (a repair may have just replaced it)."""
        try:
            receipt = read_receipt(
                self._store, cache_key=layout.cache_key_of(receipt_key), shard_id=_digits(receipt_key)
            )
        except UnavailableObjectError:
            raise
        except OSError:  # damaged: what it names is not known
            return False
        return receipt is not None and receipt.object_key != object_key

    def _judge_specs(self) -> None:
        staying = {
            layout.cache_key_of(key)
            for kind in _UNDER_A_KEY
            for key in self._held[kind]
            if key not in self._going
        }
        for key, info in self._held["specification"].items():
            cache_key = _digits(key)
            if cache_key not in staying:
                dropped = self._drop is not None and self._drop.cache_key == cache_key
                self._offer(
                    "specification", info, "nothing is left of it", cache_key=cache_key, dropped=dropped
                )

    def _judge_leases(self) -> None:
        self._found.garbage += [
            Garbage(info=lease.info, kind="lease", why="its job is dead")
            for lease in self._leases
            if not lease.live
        ]


def _names(manifest: Manifest) -> Iterator[str]:
    """All that a manifest keeps alive: its parts, its shards and their receipts, itself."""
    yield layout.manifest_key(manifest.cache_key, manifest.manifest_id)
    yield from manifest.object_keys
    for shard in manifest.shards:
        for part in (shard, *shard.columns):
            yield layout.receipt_key(part.cache_key, part.shard_id)


def _digits(key: str) -> str:
    """The id with which an object's last part begins."""
    return _DIGITS.match(key.rpartition("/")[2]).group()  # type: ignore[union-attr]  # by _NAMES
