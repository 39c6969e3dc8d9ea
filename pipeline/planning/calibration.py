"""A short run of a set's own work on the machine at hand: seconds of each stage, and bytes of a sample.

Real members of the set are decoded, encoded by the recipe's own frozen LDM, packed, and read back. What is written
goes into a temporary folder. Each stage is timed alone, on one thread; how they overlap in a worker, the plan says.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np

from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.entry import Entry, encode_columns, encode_entry, encode_png
from pipeline.cache.index import rows_of
from pipeline.cache.member import Member
from pipeline.cache.member_table import MemberTable
from pipeline.cache.receipt import LeftOut, SampleSpan
from pipeline.cache.sample_reading import read_samples
from pipeline.cache.shard import ShardWriter
from pipeline.cache.spec import CacheSpec
from pipeline.datasets.sample import ReadObject
from pipeline.loading.batch import Batch
from pipeline.loading.collate import collate
from pipeline.object_store.opening import open_store
from pipeline.planning.pass_times import Outputs
from pipeline.planning.workload import view_name
from pipeline.precompute.preparation import Prepared, ViewKey, members_by_image, prepare_image

SAMPLED_MEMBERS: Final = 256
_LEAST_MEMBERS: Final = 16
_MOST_BYTES: Final = 2**28  # packed
_SHARD: Final = "shard.tar"
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostTimes:
    """Seconds of the stages that need no network, and what they gave."""

    decode_s: float  # a member: read, decode, view and mask
    pack_s: float  # a sample: stored type, PNG, tar, hashes, local disk
    sample_bytes: float  # in a shard
    picture_bytes: float  # of them, mask and picture
    members: int  # that were decoded
    kept_share: float  # of them that are not left out
    view_share: float  # distinct views of the most there could be


def sample_members(table: MemberTable, *, most: int = SAMPLED_MEMBERS) -> tuple[Member, ...]:
    """About `most` members, of whole photos: those whose content has the smallest hashes, so any photo may be one."""
    hashes = table.images[:, 0]
    if len(hashes) > most:
        return table.members(np.flatnonzero(hashes <= np.partition(hashes, most)[most]))
    return table.members(range(len(hashes)))


def first_prepared(spec: CacheSpec, members: Sequence[Member], read: ReadObject) -> Prepared | None:
    """The first of the members that is not left out."""
    for group in members_by_image(members):
        for outcome in prepare_image(spec, group, read):
            if isinstance(outcome, Prepared):
                return outcome
    return None


class HostTimer:
    """Decodes members, packs them with one sample's tensors, and reads them back. A temporary folder holds them."""

    def __init__(
        self, spec: CacheSpec, members: Sequence[Member], read: ReadObject, *, outputs: Outputs
    ) -> None:
        self._spec, self._members, self._read, self._outputs = spec, members, read, outputs
        self._folder = tempfile.TemporaryDirectory(prefix="ldznet-plan-")
        self._spans: Sequence[SampleSpan] = ()
        self._picture: tuple[ViewKey, bytes] = (), b""

    def pack(self, *, seconds: float) -> HostTimes:
        """Time decoding and packing, for `seconds` about; at least a few members, whatever that takes."""
        decoding, packing = _Clock(), _Clock()
        most_views: set[tuple[str, ...]] = set()
        views: set[ViewKey] = set()
        members = kept = picture_bytes = 0
        until = time.perf_counter() + seconds
        with ShardWriter(Path(self._folder.name, _SHARD)) as writer:
            for group in members_by_image(self._members):
                late = kept and members >= _LEAST_MEMBERS and time.perf_counter() > until
                if late or writer.size > _MOST_BYTES:
                    break
                members += len(group)
                most_views |= {view_name(self._spec, member) for member in group}
                for one in decoding.every(prepare_image(self._spec, group, self._read)):
                    if isinstance(one, LeftOut):
                        continue
                    with packing:
                        files = self._files(one)
                        writer.write(f"{kept:032x}", files)  # as long as a key, and rising
                    views.add(one.view_key)
                    kept += 1
                    picture_bytes += sum(len(data) for name, data in files.items() if name.endswith(".png"))
        self._spans = writer.spans
        assert kept, "there is a sample to pack"
        return HostTimes(
            decode_s=decoding.seconds / members,
            pack_s=packing.seconds / kept,
            sample_bytes=sum(span.size for span in writer.spans) / kept,
            picture_bytes=picture_bytes / kept,
            members=members,
            kept_share=kept / members,
            view_share=len(views) / len(most_views),
        )

    def read(self, *, window: int, batch_size: int, seconds: float) -> tuple[float, Batch]:
        """Seconds of reading a sample, and a batch as the loader would give it; its samples may be repeated.

        Args:
            window: neighbours fetched by one ranged GET.
            batch_size: samples stacked at a time.
            seconds: about; at least one batch is timed, or what there is, the first time not counted.
        """
        batch = self._read_batch(0, window=window, batch_size=batch_size)
        samples, started = 0, time.perf_counter()
        while not samples or time.perf_counter() < started + seconds:
            start = samples % len(self._spans)
            self._read_batch(start, window=window, batch_size=batch_size)
            samples += min(batch_size, len(self._spans) - start)
            if samples >= 2 * SAMPLED_MEMBERS:
                break
        return (time.perf_counter() - started) / samples, batch

    def _read_batch(self, start: int, *, window: int, batch_size: int) -> Batch:
        spans = self._spans[start : start + batch_size]
        shard = ShardReference(shard_id="", object_key=_SHARD, sha256="", size=0, samples=len(self._spans))
        store = open_store(Path(self._folder.name))
        entries = [
            entry
            for first in range(0, len(spans), window)
            for entry in read_samples(store, shard, rows=rows_of(spans[first : first + window]))
        ]
        return collate(entries, size=max(batch_size, len(entries)), samples=len(entries))

    def _files(self, one: Prepared) -> dict[str, bytes]:
        """A sample's files, as a shard has them."""
        features, made = self._spec.features, self._outputs
        entry = Entry(
            key=one.member.key,
            latents=made.latents,
            context=made.context,
            features=made.features,
            mask=one.mask,
            facts=_facts(one),
        )
        if self._spec.content == "columns":
            return encode_columns(entry, stored_dtype=features.stored_dtype, scale_group=features.scale_group)
        files = encode_entry(entry, stored_dtype=features.stored_dtype, scale_group=features.scale_group)
        if features.keep_images:
            if self._picture[0] != one.view_key:  # encoded once a view: those that share one are neighbours
                self._picture = one.view_key, encode_png(one.pixels)
            files["image.png"] = self._picture[1]
        return files

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()


def _facts(one: Prepared) -> dict[str, object]:
    """As many bytes as a shard has for this sample."""
    sample = one.member.sample
    return {
        "phrase": sample.phrase,
        "prompt": one.prompt,
        "timestep": one.timestep,
        "view": asdict(one.view),
        "draw": one.member.draw,
        "sample_id": one.member.sample_id,
        "image_digest": one.member.image_digest,
        "image_id": sample.image_id,
        "label_id": sample.label_id,
        "split": sample.split,
    }


class _Clock:
    """Adds up the seconds inside `with`, or those that an iterator takes for its items."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def every(self, items: Iterator[_Item]) -> Iterator[_Item]:
        while True:
            with self:
                item = next(items, None)
            if item is None:
                return
            yield item

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._started
