"""A shard's receipt: what is in the shard, where, with which checksum. No receipt, no shard."""

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import ValidationError

from ldznet.config import Config
from pipeline.cache import layout
from pipeline.object_store.store import ObjectStore


class SampleSpan(Config):
    """Where one sample lies in the tar: one ranged GET."""

    key: str
    offset: int  # bytes
    size: int  # bytes
    xxh3: str  # xxh3-64 of the stretch, 16 hexadecimal digits


class LeftOut(Config):
    """A member that is not in the shard. `failed`: its data is faulty. `filtered`: the policy leaves it out."""

    key: str
    image: str
    phrase: str
    why: Literal["failed", "filtered"]
    reason: str


class Environment(Config):
    """What computed the shard: it explains a difference in rounding, and is no part of the identity."""

    device: str
    versions: dict[str, str]


class Receipt(Config):
    """What a committed shard holds."""

    shard_id: str
    object_key: str
    sha256: str
    size: int  # bytes
    samples: tuple[SampleSpan, ...]
    left_out: tuple[LeftOut, ...]
    environment: Environment

    def left_out_for(self, why: Literal["failed", "filtered"]) -> tuple[LeftOut, ...]:
        """The members that failed, or those that were filtered."""
        return tuple(member for member in self.left_out if member.why == why)


def read_receipt(store: ObjectStore, *, cache_key: str, shard_id: str) -> Receipt | None:
    """The shard's receipt, or None where the shard is not committed."""
    key = layout.receipt_key(cache_key, shard_id)
    try:
        body = store.get(key)
    except KeyError:
        return None
    try:
        receipt = Receipt.model_validate_json(body)
    except ValidationError as error:
        raise OSError(f"the receipt {store.url}/{key} is damaged: {error.errors()[0]['msg']}") from error
    if receipt.shard_id != shard_id:
        raise OSError(f"the receipt {store.url}/{key} speaks of another shard, {receipt.shard_id}")
    return receipt


def commit_receipt(store: ObjectStore, *, cache_key: str, receipt: Receipt) -> Receipt:
    """Commit a shard: the first receipt stands, and whoever comes second adopts it."""
    body = receipt.model_dump_json().encode()
    if store.create(layout.receipt_key(cache_key, receipt.shard_id), body):
        return receipt
    adopted = read_receipt(store, cache_key=cache_key, shard_id=receipt.shard_id)
    if adopted is None:
        raise OSError(
            f"the receipt of shard {receipt.shard_id} was there and is gone: is something deleting from {store.url}?"
        )
    return adopted


def read_left_out(store: ObjectStore, cache_key: str, shard_ids: Iterable[str]) -> Iterator[LeftOut]:
    """Every member that shards left out, with its reason, from their receipts."""
    for shard_id in shard_ids:
        receipt = read_receipt(store, cache_key=cache_key, shard_id=shard_id)
        if receipt is not None:
            yield from receipt.left_out
