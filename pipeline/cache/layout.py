"""Where things lie in a cache: one place for every object name."""


def spec_key(cache_key: str) -> str:
    """The numeric specification, for people to read."""
    return f"{cache_key}/spec.json"


def shard_key(cache_key: str, shard_id: str, sha256: str) -> str:
    """A shard's object: its name holds its content hash, so it is never overwritten."""
    return f"{cache_key}/shards/{shard_id}-{sha256[:16]}.tar"


def receipt_key(cache_key: str, shard_id: str) -> str:
    """A shard's receipt: readers see only what a receipt vouches for."""
    return f"{cache_key}/receipts/{shard_id}.json"


def receipt_prefix(cache_key: str) -> str:
    """All receipts of one specification."""
    return f"{cache_key}/receipts/"


def manifest_prefix(cache_key: str) -> str:
    """All manifests of one specification."""
    return f"{cache_key}/manifests/"


def manifest_key(cache_key: str, manifest_id: str) -> str:
    """A manifest: the shards that hold one set of samples."""
    return f"{manifest_prefix(cache_key)}{manifest_id}.json"


def index_key(cache_key: str, manifest_id: str) -> str:
    """The manifest's columnar index, 40 bytes a sample."""
    return f"{manifest_prefix(cache_key)}{manifest_id}.index"


def shard_list_key(cache_key: str, manifest_id: str) -> str:
    """A plain list of shard URLs, one a line, for stock `webdataset`."""
    return f"{manifest_prefix(cache_key)}{manifest_id}.shards.txt"


def request_key(request_digest: str) -> str:
    """What a recipe asked for -> the manifest that answers it."""
    return f"requests/{request_digest}.json"
