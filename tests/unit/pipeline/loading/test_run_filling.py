"""Samples read straight into a batch: bit for bit what the plain way gives, and nothing that is not as it should be."""

import hashlib
import json
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from unit.pipeline.cache.made_cache import SPEC, make_entries

from pipeline.cache.committed_shard import CommittedShard, ShardReference
from pipeline.cache.entry import encode_columns, encode_entry, encode_png
from pipeline.cache.manifest import Manifest, write_manifest
from pipeline.cache.receipt import Environment, Receipt
from pipeline.cache.sample_reading import CorruptSampleError
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.cache.spec import CacheSpec, Dtype, FeaturesConfig
from pipeline.cache.stored_type import TORCH_DTYPES
from pipeline.loading.batch import Batch
from pipeline.loading.batch_buffer import BatchBuffer
from pipeline.loading.batch_reading import RunReader
from pipeline.loading.collate import collate
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.reused_memory import ReusedMemory
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SAMPLES, PER_SHARD, BATCH = 22, 8, 5
Files = dict[str, bytes]


def commit(store: ObjectStore, folder: Path, samples: dict[str, Files], spec_key: str) -> Receipt:
    """A shard and what would be its receipt."""
    with ShardWriter(folder / "shard.tar") as writer:
        for key, files in samples.items():
            writer.write(key, files)
    shard_id = hashlib.sha256(writer.sha256.encode()).hexdigest()[:32]
    return Receipt(
        shard_id=shard_id,
        object_key=upload_shard(store, writer, cache_key=spec_key, shard_id=shard_id),
        sha256=writer.sha256,
        size=writer.size,
        samples=tuple(writer.spans),
        left_out=(),
        environment=Environment(device="cpu", versions={}),
    )


def write(
    store: ObjectStore,
    folder: Path,
    *,
    stored: Dtype = "fp32",
    images: bool = False,
    columns: bool = False,
    blocks: tuple[int, ...] = (6, 8),
    change: Callable[[int, Files], Files] = lambda _, files: files,
) -> Manifest:
    """A cache; with `columns` block 8 lies in column shards. `change` may spoil a sample by its number."""
    group = 3 if stored in {"int8", "fp8"} else 1
    features = FeaturesConfig(blocks=blocks, stored_dtype=stored, scale_group=group, keep_images=images)
    spec = CacheSpec(ldm_digest="d" * 64, features=features, policy=SPEC.policy)
    entries, shards = make_entries(SAMPLES, with_image=images), []
    for first in range(0, SAMPLES, PER_SHARD):
        samples, further = {}, {}
        for number, entry in enumerate(entries[first : first + PER_SHARD], first):
            kept = replace(entry, features={6: entry.features[6]}) if columns else entry
            files = encode_entry(kept, stored_dtype=stored, scale_group=group)
            samples[entry.key] = change(number, files)
            other = replace(entry, features={8: entry.features[8]})
            further[entry.key] = encode_columns(other, stored_dtype=stored, scale_group=group)
        parts = [commit(store, folder, further, "c" * 64)] if columns else []
        shards.append(CommittedShard.from_receipts(commit(store, folder, samples, spec.key), parts))
    return write_manifest(store, spec=spec, dataset="made", split="train", shards=shards)


@pytest.fixture
def plain_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of each run that was read the plain way."""
    seen: list[int] = []
    read = RunReader.read

    def noted(self: RunReader, run: Any) -> Any:
        seen.append(len(run.rows))
        return read(self, run)

    monkeypatch.setattr(RunReader, "read", noted)
    return seen


def loader(store: ObjectStore, manifest: Manifest, **options: Any) -> CacheLoader:
    reader = SampleReader(store=store, manifest=manifest, nearer=options.pop("nearer", None))
    wanted = {"batch_size": BATCH, "window": 3, "remainder": "pad", "concurrency": 1, **options}
    return CacheLoader(reader=reader, **wanted)


def expected(store: ObjectStore, manifest: Manifest, one: CacheLoader) -> Iterator[Batch]:
    """The same batches, sample by sample, stacked."""
    reader, order = SampleReader(store=store, manifest=manifest), one.order(0)
    for first in range(0, SAMPLES, BATCH):
        entries = [reader.read_run(np.array([row]))[0] for row in order[first : first + BATCH]]
        yield collate(entries, size=BATCH, samples=len(entries))


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    there = {"latents": batch.latents, "context": batch.context, "masks": batch.masks, "weight": batch.weight}
    there |= {f"features {block}": tensor for block, tensor in batch.features.items()}
    there |= {f"scales {block}": tensor for block, tensor in batch.scales.items()}
    return there | ({} if batch.images is None else {"images": batch.images})


def assert_equal(ours: Batch, plain: Batch) -> None:
    assert ours.keys == plain.keys
    assert ours.facts == plain.facts
    assert list(ours.features) == list(plain.features) and list(ours.scales) == list(plain.scales)
    expected_tensors = tensors_of(plain)
    assert tensors_of(ours).keys() == expected_tensors.keys()
    for name, tensor in tensors_of(ours).items():
        other = expected_tensors[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("stored", TORCH_DTYPES)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("images", [False, True])
def test_batches_are_those_of_the_plain_way(
    tmp_path: Path, plain_reads: list[int], stored: Dtype, columns: bool, images: bool
) -> None:
    store = open_store(tmp_path / "store")
    manifest = write(store, tmp_path, stored=stored, columns=columns, images=images)
    one = loader(store, manifest)
    batches = list(one.epoch(Position()))  # all are held at once: none may share memory with another
    assert plain_reads == [len(plain_reads) and plain_reads[0]]  # the first run alone
    assert [batch.weight.sum().item() for batch in batches] == [5, 5, 5, 5, 2]
    for ours, plain in zip(batches, expected(store, manifest, one), strict=True):
        assert_equal(ours, plain)


@pytest.mark.parametrize("place", ["file", "s3"])
def test_with_threads_and_reused_memory_too(
    place: str, tmp_path: Path, plain_reads: list[int], request: pytest.FixtureRequest
) -> None:
    store = open_store(tmp_path / "store" if place == "file" else request.getfixturevalue("s3_url"))
    manifest = write(store, tmp_path, stored="int8", columns=True, images=True)
    one = loader(store, manifest, concurrency=4, batches_ahead=2)
    list(one.epoch(Position()))
    plain_reads.clear()
    seen: set[int] = set()
    for _ in range(2):  # epochs of five batches of nine tensors
        for ours, plain in zip(one.epoch(Position()), expected(store, manifest, one), strict=True):
            assert_equal(ours, plain)
            seen |= {tensor.data_ptr() for tensor in tensors_of(ours).values()}
    assert not plain_reads
    assert len(seen) <= 4 * 9  # two ahead, the one that is next, and the one that was handed out


def test_blocks_that_were_not_asked_for_are_not_kept(tmp_path: Path, plain_reads: list[int]) -> None:
    store = open_store(tmp_path / "store")
    manifest = write(store, tmp_path, blocks=(8,))
    one = loader(store, manifest)
    for ours, plain in zip(one.epoch(Position()), expected(store, manifest, one), strict=True):
        assert list(ours.features) == [8]
        assert_equal(ours, plain)
    assert len(plain_reads) == 1


@dataclass
class Nearer:
    """Samples kept in memory."""

    kept: dict[tuple[str, bytes], bytes] = field(default_factory=dict)

    def read(self, shard: ShardReference, row: np.void) -> memoryview | None:
        found = self.kept.get((shard.object_key, row.tobytes()))
        return None if found is None else memoryview(found)

    def write(self, shard: ShardReference, row: np.void, stretch: memoryview) -> None:
        self.kept[shard.object_key, row.tobytes()] = bytes(stretch)


@dataclass
class Watched:
    """A store that counts ranges, and changes a bit of those whose turn it is."""

    inner: ObjectStore
    ranges: int = 0
    flips: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        self.ranges += 1
        data = bytearray(self.inner.get_range(key, start=start, length=length))
        data[-600] ^= self.ranges in self.flips
        return bytes(data)

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        self.ranges += 1
        self.inner.get_range_into(key, start=start, buffers=buffers)
        buffers[2][0] ^= self.ranges in self.flips


@pytest.mark.parametrize("forgotten", [None, 2, 3])
def test_a_nearer_place_is_filled_and_then_read(tmp_path: Path, forgotten: int | None) -> None:
    store: Any = Watched(open_store(tmp_path / "store"))
    manifest = write(store.inner, tmp_path, columns=True)
    nearer = Nearer()
    one = loader(store, manifest, nearer=nearer)
    plain = list(expected(store.inner, manifest, one))
    for ours, other in zip(one.epoch(Position()), plain, strict=True):
        assert_equal(ours, other)
    assert len(nearer.kept) == 2 * SAMPLES
    if forgotten is not None:
        nearer.kept = {key: kept for n, (key, kept) in enumerate(nearer.kept.items()) if n % forgotten}
    store.ranges = 0
    for ours, other in zip(one.epoch(Position()), plain, strict=True):
        assert_equal(ours, other)
    assert len(nearer.kept) == 2 * SAMPLES
    assert bool(store.ranges) == (forgotten is not None)


def test_a_bit_that_flips_on_its_way_is_right_the_second_time(tmp_path: Path, plain_reads: list[int]) -> None:
    store: Any = Watched(open_store(tmp_path / "store"), flips=(3, 7))
    manifest = write(store.inner, tmp_path)
    one = loader(store, manifest)
    for ours, plain in zip(one.epoch(Position()), expected(store.inner, manifest, one), strict=True):
        assert_equal(ours, plain)
    assert len(plain_reads) == 3


def with_header(**changed: Any) -> Callable[[Files], Files]:
    """Another description of a tensor in the file's header."""

    def change(files: Files) -> Files:
        data = files["safetensors"]
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        header["block_6"] |= changed
        text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
        return files | {"safetensors": struct.pack("<Q", len(text)) + text + data[8 + size :]}

    return change


def with_tensors(**changed: Tensor) -> Callable[[Files], Files]:
    return lambda files: files | {"safetensors": save(load(files["safetensors"]) | changed)}


HOSTILE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a header of an exabyte": (
        lambda files: files | {"safetensors": struct.pack("<Q", 2**60) + files["safetensors"][8:]},
        "a header of 1152921504606846976 bytes",
    ),
    "overlapping tensors": (with_header(data_offsets=[4, 132]), "overlaps|gap"),
    "a tensor beyond the end": (with_header(data_offsets=[2**40, 2**40 + 128]), "overlaps|gap"),
    "another type": (with_header(dtype="F64"), "other offsets|no cache holds"),
    "an unknown type": (with_header(dtype="PICKLE"), "no cache holds"),
    "another shape": (with_header(shape=[4, 2, 4]), "other types or shapes"),
    "another size": (with_tensors(block_6=torch.zeros(8, 3, 3)), "other types or shapes"),
    "half precision": (with_tensors(latents=torch.zeros(4, 2, 2).half()), "other types or shapes"),
    "a tensor too many": (with_tensors(code=torch.zeros(1)), "none of a sample's"),
    "a block less": (
        lambda files: (
            files
            | {"safetensors": save({n: t for n, t in load(files["safetensors"]).items() if n != "block_8"})}
        ),
        "lacks the features of block 8",
    ),
    "another mask": (
        lambda files: files | {"mask.png": encode_png(np.zeros((9, 9), bool))},
        "other types or",
    ),
    "a mask that is none": (lambda files: files | {"mask.png": b"GIF89a"}, "not a sound PNG"),
    "no facts": (lambda files: files | {"json": b"[]"}, "no object"),
    "no mask": (
        lambda files: {n: data for n, data in files.items() if n != "mask.png"},
        "no file 'mask.png'",
    ),
    "a pickle": (lambda files: files | {"pth": b"\x80\x04N."}, "no place in the sample"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_sound_bytes_that_are_no_sample_are_refused_by_name(name: str, tmp_path: Path) -> None:
    spoil, reason = HOSTILE[name]
    store, hit = open_store(tmp_path / "store"), SAMPLES - 1
    manifest = write(store, tmp_path, change=lambda number, files: spoil(files) if number == hit else files)
    key = make_entries(SAMPLES)[hit].key
    one = loader(store, manifest, shuffle=False)
    tracemalloc.start()
    with pytest.raises(CorruptSampleError, match=reason) as error:
        list(one.epoch(Position()))
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()
    assert manifest.shards[-1].object_key in str(error.value)
    skipping = loader(store, manifest, shuffle=False, on_corrupt="skip", max_corrupt_share=1.0)
    batches = list(skipping.epoch(Position()))
    assert list(skipping.skipped) == [key]
    assert batches[-1].weight.tolist() == [1, 0, 0, 0, 0]
    assert key not in batches[-1].keys
    for ours, plain in zip(batches[:-1], expected(store, manifest, skipping), strict=False):
        assert_equal(ours, plain)


def test_rows_may_come_in_any_order_and_may_stay_away() -> None:
    entries = make_entries(6)
    buffer = BatchBuffer(size=6, memory=ReusedMemory(most=1))
    for row in (4, 0, 3):
        buffer.put(row, entries[row])
    assert buffer.samples == 3
    assert_equal(buffer.batch(samples=3), collate([entries[0], entries[3], entries[4]], size=6, samples=3))


def test_memory_comes_back_with_its_last_user() -> None:
    memory = ReusedMemory(most=1)

    def ask() -> Tensor:
        return memory.empty("latents", 4, 1000, dtype=torch.bfloat16)

    first = ask()
    place, part, array = first.data_ptr(), first[1], first.view(torch.int16).numpy()
    del first
    assert ask().data_ptr() != place
    del part
    held = [ask(), ask()]
    assert place not in {one.data_ptr() for one in held}
    del array
    assert ask().data_ptr() == place
    threads = [threading.Thread(target=lambda: [ask() for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
