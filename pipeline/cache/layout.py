"""Where things lie in a cache: one place for every object name."""

import re
from typing import Final

SPEC_PREFIX: Final = "specs/"
REQUEST_PREFIX: Final = "requests/"

_SHARD: Final = re.compile(r"[0-9a-f]{64}/shards/[0-9a-f]{32}-[0-9a-f]{16}\.tar")


def spec_key(cache_key: str) -> str:
    """A numeric specification, for people to read and for other specifications to find."""
    return f"{SPEC_PREFIX}{cache_key}.json"


def shard_prefix(cache_key: str) -> str:
    """All shards of one specification."""
    return f"{cache_key}/shards/"


def shard_key(cache_key: str, shard_id: str, sha256: str) -> str:
    """A shard's object: its name holds its content hash, so it is never overwritten."""
    return f"{shard_prefix(cache_key)}{shard_id}-{sha256[:16]}.tar"


def is_shard_key(key: str) -> bool:
    """Whether a name is a shard's, and so stays inside the cache."""
    return _SHARD.fullmatch(key) is not None


def cache_key_of(key: str) -> str:
    """The specification under which an object lies."""
    return key.partition("/")[0]


def receipt_key(cache_key: str, shard_id: str) -> str:
    """A shard's receipt: readers see only what a receipt vouches for."""
    return f"{receipt_prefix(cache_key)}{shard_id}.json"


def receipt_prefix(cache_key: str) -> str:
    """All receipts of one specification."""
    return f"{cache_key}/receipts/"


def manifest_prefix(cache_key: str) -> str:
    """All manifests of one specification."""
    return f"{cache_key}/manifests/"


def manifest_key(cache_key: str, manifest_id: str) -> str:
    """A manifest: the shards that hold one set of samples."""
    return f"{manifest_prefix(cache_key)}{manifest_id}.json"


def index_key(cache_key: str, manifest_id: str, *, column: int | None = None) -> str:
    """A columnar index of the manifest, 40 bytes a sample: of its samples, or of a column of further blocks."""
    number = "" if column is None else f".column-{column}"
    return f"{manifest_prefix(cache_key)}{manifest_id}{number}.index"


def left_out_key(cache_key: str, manifest_id: str) -> str:
    """The members that the manifest's shards left out, with reasons, one JSON a line."""
    return f"{manifest_prefix(cache_key)}{manifest_id}.left_out.jsonl"


def shard_list_key(cache_key: str, manifest_id: str) -> str:
    """A plain list of shard URLs, one a line, for stock `webdataset`."""
    return f"{manifest_prefix(cache_key)}{manifest_id}.shards.txt"


def request_key(request_digest: str) -> str:
    """What a recipe asked for -> the manifest that answers it."""
    return f"{REQUEST_PREFIX}{request_digest}.json"
