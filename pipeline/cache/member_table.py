"""The members of a set, column by column: ten million of them fit into a gigabyte, their records on local disk."""

import dataclasses
import hashlib
import mmap
import os
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.member import Member, member_key, sample_id
from pipeline.datasets.sample import MaskSource, Sample

_BUFFER_BYTES = 1 << 16
_MOST_RESIDENT = 512 << 20  # bytes: a larger file of records is not kept in memory as a whole …
_PACKS_RESIDENT = 64  # … and what was touched of it is let go of after so many shards


class MemberTable:
    """Every draw of every sample, once: a sample that the data set lists twice is one member.

    Rows are in key order. A row holds the member's key and the hash of its image as two 64-bit numbers each, and
    where its record lies in a temporary file, which goes with the table. So memory is 50 bytes a member.
    """

    def __init__(
        self,
        *,
        keys: NDArray[np.uint64],
        images: NDArray[np.uint64],
        places: NDArray[np.uint64],
        records: "_Records",
        file: IO[bytes],
    ) -> None:
        order = np.lexsort((places, keys[:, 1], keys[:, 0]))
        ordered = keys[order]
        first = np.ones(len(order), bool)
        first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        kept = order[first]
        self.keys = keys[kept]  # N,2 the member key's digits as numbers
        self.images = images[kept]  # N,2 equal for members of one image
        self._places = places[kept]  # N byte offset of the sample's record * 2^8 + draw
        self.draws = (self._places & 0xFF).astype(np.uint8)  # N
        self._records = records
        self._file = file
        self._packs = 0

    @classmethod
    def from_samples(
        cls,
        samples: Iterable[Sample],
        *,
        draws: int,
        digest: Callable[[str], str],
        folder: Path | None = None,
    ) -> Self:
        """List members, spilling the samples' records into a temporary file.

        Args:
            samples: lazily, in any order.
            draws: of each sample, at most 256.
            digest: content digest of an object by key.
            folder: where the temporary file goes; None: the system's place.
        """
        keys, images, places = array("Q"), array("Q"), array("Q")
        records = _Records()
        # It has no name, so that nothing stays behind however the process ends.
        file = tempfile.TemporaryFile(buffering=_BUFFER_BYTES, dir=folder)  # noqa: SIM115 - the table closes it
        offset = 0
        for sample in samples:
            identity, image = sample_id(sample, digest), digest(sample.image)
            record = pickle.dumps((identity, image, *records.flatten(sample)), protocol=5)
            image_numbers = _numbers(hashlib.sha256(image.encode()).digest())
            for draw in range(draws):
                keys.extend(_numbers(bytes.fromhex(member_key(identity, draw))))
                images.extend(image_numbers)
                places.append(offset << 8 | draw)
            offset += file.write(record)
        return cls(
            keys=np.frombuffer(keys, np.uint64).reshape(-1, 2),
            images=np.frombuffer(images, np.uint64).reshape(-1, 2),
            places=np.frombuffer(places, np.uint64),
            records=records,
            file=file,
        )

    def __len__(self) -> int:
        """Members: samples times draws."""
        return len(self.keys)

    def members(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[Member, ...]:
        """The members of these rows, their records read back."""
        return tuple(self._member(int(row)) for row in rows)

    def pack(self, rows: NDArray[np.int64]) -> "PackedMembers":
        """The members of these rows for another process: their records as they lie in the file, unread."""
        starts, sizes = self._places[rows] >> 8, self._sizes[rows]
        ends = starts + sizes
        mapped = self._mapped
        records = [mapped[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        self._packs += 1
        if len(mapped) > _MOST_RESIDENT and self._packs % _PACKS_RESIDENT == 0:
            assert isinstance(mapped, mmap.mmap), "no empty file"
            mapped.madvise(mmap.MADV_DONTNEED)  # its pages are the system's again, and no memory of ours
        return PackedMembers(
            keys=self.keys[rows],
            draws=self.draws[rows],
            sizes=sizes,
            records=b"".join(records),
            kinds=self._records.kinds,
        )

    @cached_property
    def _sizes(self) -> NDArray[np.uint32]:
        """N bytes from the beginning of a record to that of the next one that is a member's."""
        offsets = self._places >> 8
        starts = np.unique(offsets)
        self._file.seek(0, os.SEEK_END)
        ends = np.append(starts[1:], np.uint64(self._file.tell()))
        return (ends - starts)[np.searchsorted(starts, offsets)].astype(np.uint32)

    @cached_property
    def _mapped(self) -> mmap.mmap | bytes:
        """The records' file in memory, page by page as it is needed: a shard's records lie all over it."""
        self._file.flush()
        if not len(self):
            return b""  # an empty file cannot be mapped
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def _member(self, row: int) -> Member:
        place = int(self._places[row])
        self._file.seek(place >> 8)
        record = pickle.load(self._file)  # noqa: S301 - this process wrote it, into a file without a name
        return _restored(self.keys[row], place & 0xFF, record, self._records.kinds)

    def rows_with(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """For each of the keys `M,2` its row, or -1 where it is no member."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        found = np.minimum(np.searchsorted(_joined(self.keys), _joined(keys)), len(self.keys) - 1)
        return np.where((self.keys[found] == keys).all(axis=1), found, -1)

    def close(self) -> None:
        """Remove the temporary file. Keys stay."""
        mapped = self.__dict__.pop("_mapped", None)
        if isinstance(mapped, mmap.mmap):
            mapped.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedMembers:
    """Members on their way to another process of the same run: sent in a tenth of the time of the objects."""

    keys: NDArray[np.uint64]  # N,2
    draws: NDArray[np.uint8]  # N
    sizes: NDArray[np.uint32]  # N bytes of each record
    records: bytes
    kinds: tuple[type[MaskSource], ...]

    def __len__(self) -> int:
        """Members."""
        return len(self.keys)

    def unpack(self) -> Iterator[Member]:
        """The members, in their order."""
        ends = np.cumsum(self.sizes, dtype=np.int64)
        for key, draw, start, end in zip(
            self.keys, self.draws.tolist(), (ends - self.sizes).tolist(), ends.tolist(), strict=True
        ):
            record = pickle.loads(self.records[start:end])  # noqa: S301 - the run's own driver wrote it
            yield _restored(key, draw, record, self.kinds)


class _Records:
    """Samples as plain values and back: pickling a tuple is five times as quick as pickling an object."""

    def __init__(self) -> None:
        self._kinds: list[type[MaskSource]] = []
        self._values: dict[type[MaskSource], Callable[[MaskSource], Any]] = {}

    def flatten(self, sample: Sample) -> tuple[Any, ...]:
        kind = type(sample.mask)
        if kind not in self._values:
            self._kinds.append(kind)
            self._values[kind] = _values_of(kind)
        return (*_SAMPLE_VALUES(sample), self._kinds.index(kind), self._values[kind](sample.mask))

    @property
    def kinds(self) -> tuple[type[MaskSource], ...]:
        return tuple(self._kinds)


def _restored(
    key: NDArray[np.uint64], draw: int, record: Sequence[Any], kinds: Sequence[type[MaskSource]]
) -> Member:
    identity, image, *values, number, mask_values = record
    kind = kinds[number]
    names = _names(kind)
    mask = mask_values if not names else kind(**dict(zip(names, mask_values, strict=True)))
    sample = Sample(**dict(zip(_SAMPLE_NAMES, values, strict=True)), mask=mask)
    return Member(key=key_text(key), sample_id=identity, image_digest=image, draw=draw, sample=sample)


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _values_of(kind: type) -> Callable[[Any], Any]:
    """Takes the fields of a data class, always as a tuple; anything else stays the object that it is."""
    names = _names(kind)
    if not names:
        return lambda mask: mask
    if len(names) == 1:
        (name,) = names
        return lambda mask: (getattr(mask, name),)
    return attrgetter(*names)


_SAMPLE_NAMES = tuple(name for name in _names(Sample) if name != "mask")
_SAMPLE_VALUES = attrgetter(*_SAMPLE_NAMES)


def key_text(numbers: NDArray[np.uint64]) -> str:
    """A key's 32 hexadecimal digits."""
    return f"{int(numbers[0]):016x}{int(numbers[1]):016x}"


def key_numbers(keys: Iterable[str]) -> NDArray[np.uint64]:
    """Keys of 32 hexadecimal digits as numbers, `N,2`."""
    numbers = array("Q")
    for key in keys:
        numbers.extend(_numbers(bytes.fromhex(key)))
    return np.frombuffer(numbers, np.uint64).reshape(-1, 2)


def _numbers(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def _joined(keys: NDArray[np.uint64]) -> NDArray[np.void]:
    """One sortable value a key: two numbers compared one after the other."""
    return np.ascontiguousarray(keys).view([("high", np.uint64), ("low", np.uint64)]).reshape(-1)
