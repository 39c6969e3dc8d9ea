"""What a cache holds: a summary of each numeric specification, and the details of one."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from pydantic import ValidationError

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.cache_keys import list_cache_keys
from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.manifest import Manifest, RequestAnswer, list_manifests, read_answer, read_left_out
from pipeline.cache.receipt import Environment
from pipeline.cache.sealed import BrokenSealError
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore

_LARGEST_SPEC: Final = 1 << 20  # bytes

Where = Literal["own", "other specification", "column"]


class SpecSummary(Config):
    """A numeric specification and how much its manifests name, each shard counted once."""

    cache_key: str
    spec: CacheSpec | None  # None: its text is gone, damaged or of another version
    sets: tuple[str, ...]  # DATASET/SPLIT
    manifests: int
    samples: int
    shards: int  # columns of further blocks not counted
    size: int  # bytes, columns included
    lent: int  # shards under its key that other specifications' manifests name, and its own do not
    unnamed: int  # committed shards under its key that no manifest names
    modified: float  # the last change of it or its manifests: seconds since the epoch


class CacheSummary(Config):
    """All specifications of a cache."""

    url: str
    specs: tuple[SpecSummary, ...]
    size: int  # bytes of all shards that manifests name; one that several name counts once


class Origin(Config):
    """Shards of a manifest that lie under one specification."""

    where: Where
    cache_key: str
    shards: int
    size: int  # bytes


class ReasonCount(Config):
    """How many members were left out for one reason."""

    why: Literal["failed", "filtered"]
    reason: str
    members: int


class ManifestDetails(Config):
    """One manifest as `ldznet cache show` tells it."""

    manifest_id: str
    dataset: str
    split: str
    samples: int
    size: int  # bytes
    failed: int
    filtered: int
    left_out: tuple[ReasonCount, ...]
    origins: tuple[Origin, ...]
    environments: tuple[Environment, ...]
    requests: int  # of recipes, that lead to it
    run_ids: tuple[str, ...]  # MLflow runs that computed it
    modified: float  # seconds since the epoch


class SpecDetails(Config):
    """One specification as `ldznet cache show` tells it."""

    cache_key: str
    spec: CacheSpec | None
    manifests: tuple[ManifestDetails, ...]


def summarise(store: ObjectStore) -> CacheSummary:
    """Every specification with what its manifests name. Manifests are held one at a time.

    Raises:
        UserError: the URL holds no cache.
    """
    keys = list_cache_keys(store)
    named: dict[str, int] = {}  # bytes by object key, over the whole cache
    own: dict[str, set[str]] = {}
    specs = []
    for cache_key in keys:
        summary, sizes = _summarise(store, cache_key)
        specs.append(summary)
        named |= sizes
        own[cache_key] = {key for key in sizes if layout.cache_key_of(key) == cache_key}
    everywhere: dict[str, set[str]] = {key: set() for key in keys}
    for key in named:
        everywhere.setdefault(layout.cache_key_of(key), set()).add(key)
    return CacheSummary(
        url=store.url,
        specs=tuple(
            one.model_copy(
                update={
                    "lent": len(everywhere[one.cache_key] - own[one.cache_key]),
                    "unnamed": len(_committed(store, one.cache_key) - _ids(everywhere[one.cache_key])),
                }
            )
            for one in specs
        ),
        size=sum(named.values()),
    )


def _summarise(store: ObjectStore, cache_key: str) -> tuple[SpecSummary, dict[str, int]]:
    shards: dict[str, tuple[int, int]] = {}  # samples and bytes
    columns: dict[str, int] = {}  # bytes
    sets: dict[str, None] = {}
    manifests = 0
    for manifest in list_manifests(store, cache_key):
        manifests += 1
        sets[f"{manifest.dataset}/{manifest.split}"] = None
        for shard in manifest.shards:
            shards[shard.object_key] = shard.samples, shard.size
            columns |= {column.object_key: column.size for column in shard.columns}
    sizes = {key: size for key, (_, size) in shards.items()} | columns
    summary = SpecSummary(
        cache_key=cache_key,
        spec=read_spec(store, cache_key),
        sets=tuple(sets),
        manifests=manifests,
        samples=sum(samples for samples, _ in shards.values()),
        shards=len(shards),
        size=sum(sizes.values()),
        lent=0,
        unnamed=0,
        modified=_modified(store, cache_key),
    )
    return summary, sizes


def _committed(store: ObjectStore, cache_key: str) -> set[str]:
    prefix = layout.receipt_prefix(cache_key)
    return {info.key.removeprefix(prefix).removesuffix(".json") for info in store.list(prefix)}


def _ids(object_keys: Iterable[str]) -> set[str]:
    return {_shard_id(key) for key in object_keys}


def _shard_id(object_key: str) -> str:
    return object_key.rpartition("/")[2].partition("-")[0]


def _modified(store: ObjectStore, cache_key: str) -> float:
    times = [info.modified for info in store.list(layout.manifest_prefix(cache_key))]
    spec = store.stat(layout.spec_key(cache_key))
    return max([*times, spec.modified if spec else 0.0])


def read_spec(store: ObjectStore, cache_key: str) -> CacheSpec | None:
    """A numeric specification by its key, or None where its text is gone, damaged or of another version."""
    try:
        spec = CacheSpec.model_validate_json(store.get(layout.spec_key(cache_key), at_most=_LARGEST_SPEC))
    except (KeyError, ValidationError):
        return None
    return spec if spec.key == cache_key else None


def list_manifest_ids(store: ObjectStore, cache_key: str) -> list[str]:
    """Ids of a specification's manifests, from a listing alone."""
    prefix = layout.manifest_prefix(cache_key)
    names = [info.key.removeprefix(prefix) for info in store.list(prefix)]
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def describe(store: ObjectStore, cache_key: str) -> SpecDetails:
    """One specification and its manifests.

    Raises:
        UserError: a request is damaged.
        OSError: a manifest's list of what was left out is gone or damaged.
    """
    answers = [answer for answer in _answers(store) if answer.cache_key == cache_key]
    return SpecDetails(
        cache_key=cache_key,
        spec=read_spec(store, cache_key),
        manifests=tuple(
            _describe(store, manifest, [one for one in answers if one.manifest_id == manifest.manifest_id])
            for manifest in list_manifests(store, cache_key)
        ),
    )


def _answers(store: ObjectStore) -> Iterator[RequestAnswer]:
    for info in store.list(layout.REQUEST_PREFIX):
        try:
            yield read_answer(store, info.key)
        except KeyError:
            continue
        except BrokenSealError as error:
            raise UserError(f"{store.url}/{info.key} is damaged: remove it") from error


def _describe(store: ObjectStore, manifest: Manifest, answers: list[RequestAnswer]) -> ManifestDetails:
    reasons = Counter((member.why, member.reason) for _, member in read_left_out(store, manifest))
    info = store.stat(layout.manifest_key(manifest.cache_key, manifest.manifest_id))
    return ManifestDetails(
        manifest_id=manifest.manifest_id,
        dataset=manifest.dataset,
        split=manifest.split,
        samples=manifest.samples,
        size=manifest.size,
        failed=manifest.failed,
        filtered=manifest.filtered,
        left_out=tuple(
            ReasonCount(why=why, reason=reason, members=members)
            for (why, reason), members in reasons.most_common()
        ),
        origins=_origins(manifest),
        environments=manifest.environments,
        requests=len(answers),
        run_ids=tuple(sorted({answer.run_id for answer in answers if answer.run_id})),
        modified=info.modified if info else 0.0,
    )


def _origins(manifest: Manifest) -> tuple[Origin, ...]:
    shards: Counter[tuple[Where, str]] = Counter()
    sizes: Counter[tuple[Where, str]] = Counter()

    def count(where: Where, shard: ShardReference) -> None:
        shards[where, shard.cache_key] += 1
        sizes[where, shard.cache_key] += shard.size

    for shard in manifest.shards:
        count("own" if shard.cache_key == manifest.cache_key else "other specification", shard)
        for column in shard.columns:
            count("column", column)
    return tuple(
        Origin(where=where, cache_key=key, shards=shards[where, key], size=sizes[where, key])
        for where, key in shards
    )
