"""A shard's receipt: what is in the shard, where, with which checksum. No receipt, no shard."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ldznet.config import Config
from pipeline.cache import layout
from pipeline.cache.sealed import BrokenSealError, seal, unseal
from pipeline.object_store.store import ObjectStore

_LARGEST: Final = 2**28  # bytes; a hundred and some a sample


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

    device: str  # "cpu" or "cuda"
    processor: str = ""  # the model's name: other models may round otherwise
    versions: dict[str, str]

    def difference(self, other: "Environment") -> str:
        """What differs, for a person to read; empty where nothing does."""
        pairs = [("device", self.device, other.device), ("processor", self.processor, other.processor)]
        names = sorted({*self.versions, *other.versions})
        pairs += [(name, self.versions.get(name, "none"), other.versions.get(name, "none")) for name in names]
        return ", ".join(f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs)


class OfOneDraw(Config):
    """Something that belongs to one draw. Draw 0 goes unwritten: what is older than draws has none and stays valid."""

    draw: int = Field(default=0, ge=0)

    @model_serializer(mode="wrap")
    def _without_draw_0(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if name != "draw" or value}


class Receipt(OfOneDraw):
    """What a committed shard holds."""

    shard_id: str
    object_key: str
    sha256: str
    size: int  # bytes
    samples: tuple[SampleSpan, ...]
    left_out: tuple[LeftOut, ...]
    environment: Environment
    converted_from: str | None = None  # the shard in another stored type that it was made of

    def left_out_for(self, why: Literal["failed", "filtered"]) -> tuple[LeftOut, ...]:
        """The members that failed, or those that were filtered."""
        return tuple(member for member in self.left_out if member.why == why)


def read_receipt(store: ObjectStore, *, cache_key: str, shard_id: str) -> Receipt | None:
    """The shard's receipt, or None where the shard is not committed.

    Raises:
        OSError: it is damaged, or leads out of the cache.
    """
    key = layout.receipt_key(cache_key, shard_id)
    try:
        body = store.get(key, at_most=_LARGEST)
    except KeyError:
        return None
    try:
        receipt = unseal(Receipt, body)
    except BrokenSealError as error:
        raise OSError(f"the receipt {store.url}/{key} is damaged: {error}") from error
    if receipt.shard_id != shard_id:
        raise OSError(f"the receipt {store.url}/{key} speaks of another shard, {receipt.shard_id}")
    if not layout.is_shard_key(receipt.object_key):
        raise OSError(f"the receipt {store.url}/{key} names {receipt.object_key!r}, which is no shard")
    return receipt


def read_receipts(
    store: ObjectStore, *, cache_key: str, shard_ids: Iterable[str], at_once: int = 32
) -> Iterator[Receipt | None]:
    """Many receipts, in order, several requests in flight."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="receipts") as pool:
        yield from pool.map(
            lambda shard_id: read_receipt(store, cache_key=cache_key, shard_id=shard_id), shard_ids
        )


def commit_receipt(store: ObjectStore, *, cache_key: str, receipt: Receipt) -> Receipt:
    """Commit a shard: the first receipt stands, and whoever comes second adopts it."""
    if store.create(layout.receipt_key(cache_key, receipt.shard_id), seal(receipt)):
        return receipt
    adopted = read_receipt(store, cache_key=cache_key, shard_id=receipt.shard_id)
    if adopted is None:
        raise OSError(
            f"the receipt of shard {receipt.shard_id} was there and is gone: is something deleting from {store.url}?"
        )
    return adopted
