"""Writing shards: packing, hashing and upload of ready tensors to SeaweedFS, against plain PUTs of the same bytes.

As in a worker, two shards are in the making at a time.

python -m tests.benchmarks.shard_writing
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import numpy as np
import torch
from botocore.config import Config

from pipeline.cache.entry import Entry, encode_entry
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.sides import ratio, spread, take_turns
from tests.benchmarks.temporary import memory_folder

# Block features of SD 1.4 at 384 px: C,h,w of blocks 6 to 10, 1.57 MB a sample in fp16.
SHAPES = {6: (1280, 12, 12), 7: (1280, 6, 6), 8: (1280, 12, 12), 9: (1280, 12, 12), 10: (1280, 12, 12)}
OURS, PLAIN = "packed, hashed, uploaded", "plain PUTs"
PLAIN_TWO = "plain PUTs, two at a time"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv, rounds=7)
    torch.set_num_threads(1)
    shards, samples = (2, 2) if arguments.quick else (6, 32)
    with memory_folder() as folder, s3_server(folder) as bucket:
        bench = _Bench(folder, bucket=bucket, shards=shards, samples=samples)
        sides = {OURS: bench.ours, PLAIN: bench.plain, PLAIN_TWO: bench.plain_two_at_a_time}
        figures = take_turns(sides, rounds=arguments.rounds)
    write_record(
        name="shard_writing",
        value=ratio(figures, OURS, PLAIN),
        unit="of plain PUTs",
        better="higher",
        target=0.8,
        sides=figures,
        sides_unit="MB/s",
        command="python -m tests.benchmarks.shard_writing",
        about=(
            f"{shards} shards of {samples} samples with SD 1.4's shapes at 384 px in fp16 "
            f"({bench.size / shards / 1e6:.0f} MB each), from ready tensors in fp32 to objects on SeaweedFS (same "
            "machine, its files in memory): converted, packed into a tar, hashed (xxh3 a sample, SHA-256 and MD5 a "
            "shard) and uploaded, two shards at a time as in a worker. Plain: boto3's put_object with its own defaults "
            "of the same bytes from memory, one after another; beside it two at a time, for information."
        ),
        details={
            "ratio of single rounds": spread(figures, OURS, PLAIN),
            "ratio to plain PUTs two at a time": round(ratio(figures, OURS, PLAIN_TWO), 3),
        },
        threads=1,
        folder=arguments.folder,
    )


class _Bench:
    def __init__(self, folder: Path, *, bucket: str, shards: int, samples: int) -> None:
        self._folder = folder
        self._bucket = bucket
        self._entries = _entries(samples)
        self._client: Any = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
        self._body = _packed(self._entries, folder / "body.tar").path.read_bytes()
        self._shards = shards
        self.size = shards * len(self._body)

    def ours(self) -> float:
        """MB/s from tensors to objects."""
        store = open_store(f"s3://{self._bucket}/{uuid4().hex}")
        paths = [self._folder / f"{number}.tar" for number in range(self._shards)]
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as workers:
            keys = list(workers.map(lambda path: _write(self._entries, path, store), paths))
        seconds = time.perf_counter() - start
        self._remove(store, keys)
        return self.size / 1e6 / seconds

    def plain(self) -> float:
        """MB/s of the same bytes, by the client library alone."""
        return self._put_all(at_once=1)

    def plain_two_at_a_time(self) -> float:
        """As `plain`, with two requests in flight."""
        return self._put_all(at_once=2)

    def _put_all(self, *, at_once: int) -> float:
        place = uuid4().hex
        keys = [f"{number}.tar" for number in range(self._shards)]

        def put(key: str) -> None:
            self._client.put_object(Bucket=self._bucket, Key=f"{place}/{key}", Body=self._body)

        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as workers:
            list(workers.map(put, keys))
        seconds = time.perf_counter() - start
        self._remove(open_store(f"s3://{self._bucket}/{place}"), keys)
        return self.size / 1e6 / seconds

    def _remove(self, store: ObjectStore, keys: Sequence[str]) -> None:
        for key in keys:
            store.delete(key)


def _packed(entries: Sequence[Entry], path: Path) -> ShardWriter:
    with ShardWriter(path) as writer:
        for entry in entries:
            writer.write(entry.key, encode_entry(entry, stored_dtype="fp16"))
    return writer


def _write(entries: Sequence[Entry], path: Path, store: ObjectStore) -> str:
    key = upload_shard(store, _packed(entries, path), cache_key="0" * 64, shard_id=uuid4().hex)
    path.unlink()
    return key


def _entries(samples: int) -> list[Entry]:
    """Samples as the networks give them, in fp32."""
    generator = torch.Generator().manual_seed(0)
    mask = np.zeros((384, 384), bool)
    mask[100:250, 120:300] = True
    return [
        Entry(
            key=f"{number:032x}",
            latents=torch.randn(4, 48, 48, generator=generator),
            context=torch.randn(77, 768, generator=generator),
            features={block: torch.randn(shape, generator=generator) for block, shape in SHAPES.items()},
            mask=mask,
            facts={"phrase": f"phrase {number}", "timestep": 400},
        )
        for number in range(samples)
    ]


if __name__ == "__main__":
    main()
