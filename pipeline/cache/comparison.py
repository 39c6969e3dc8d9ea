"""What differs between two numeric specifications, and which shards they share."""

from typing import Any

from ldznet.config import Config
from pipeline.cache.inventory import read_spec
from pipeline.cache.manifest import list_manifests
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore


class FieldDifference(Config):
    """One field that two specifications have otherwise; values as JSON has them."""

    field: str
    first: Any
    second: Any


class Comparison(Config):
    """Two specifications side by side."""

    first: str  # cache key
    second: str
    fields: tuple[FieldDifference, ...] | None  # None: the text of one of them cannot be read
    shared_shards: int  # objects that both name: shards, and columns of further blocks
    shared_size: int  # bytes
    first_size: int  # bytes that only the first's manifests name
    second_size: int


def compare(store: ObjectStore, first: str, second: str) -> Comparison:
    """Compare two specifications by their cache keys, field by field and shard by shard."""
    specs = read_spec(store, first), read_spec(store, second)
    ours, theirs = _named(store, first), _named(store, second)
    shared = ours.keys() & theirs.keys()
    return Comparison(
        first=first,
        second=second,
        fields=None if specs[0] is None or specs[1] is None else differing_fields(specs[0], specs[1]),
        shared_shards=len(shared),
        shared_size=sum(ours[key] for key in shared),
        first_size=sum(size for key, size in ours.items() if key not in shared),
        second_size=sum(size for key, size in theirs.items() if key not in shared),
    )


def differing_fields(first: CacheSpec, second: CacheSpec) -> tuple[FieldDifference, ...]:
    """The fields that two specifications have otherwise, by their path (`features.blocks`)."""
    ours, theirs = _flat(first.model_dump(mode="json")), _flat(second.model_dump(mode="json"))
    return tuple(
        FieldDifference(field=field, first=ours.get(field), second=theirs.get(field))
        for field in dict.fromkeys([*ours, *theirs])
        if ours.get(field) != theirs.get(field)
    )


def _flat(content: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


def _named(store: ObjectStore, cache_key: str) -> dict[str, int]:
    return {
        part.object_key: part.size
        for manifest in list_manifests(store, cache_key)
        for shard in manifest.shards
        for part in (shard, *shard.columns)
    }
