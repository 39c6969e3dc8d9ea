"""The sides of the loader benchmarks that run in this project's Python: a program for `ReadingProcess`.

python -m tests.benchmarks.reading_sides SIDE URL CACHE_KEY MANIFEST_ID

`ours`: the loader, every byte verified, decoded to batches; `ours_worker`: the same in a worker process of its own.
`raw`: the same ranges with the same concurrency, by plain boto3 or `pread`, nothing decoded. `whole`: whole shards from
S3, several streams at once, each MiB let go as it comes. `webdataset`: stock, its samples' tensors by
`safetensors.torch.load`. `webdataset_batches`: the same, and masks and facts decoded, and all stacked, as the loader
gives it.
"""

import functools
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load

from pipeline.cache.layout import shard_list_key
from pipeline.cache.manifest import read_manifest
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.files import FileStore
from pipeline.object_store.opening import open_store
from pipeline.object_store.s3 import S3Store

BATCH, WINDOW, CONCURRENCY = 32, 8, 8
_WHOLE_SHARDS = 4  # at once
_STOCK_READ = 1 << 20  # bytes
Read = Callable[[], int]  # reads an epoch, and returns its samples


class Sides:
    """Each method named for a side gives what reads an epoch, which is then timed."""

    def __init__(self, url: str, cache_key: str, manifest_id: str) -> None:
        self.store = open_store(url)
        self.manifest = read_manifest(self.store, cache_key=cache_key, manifest_id=manifest_id)
        self._loader: CacheLoader | None = None

    def loader(self, *, processes: int = 0) -> CacheLoader:
        """The loader, as a rank has it."""
        if self._loader is None:
            self._loader = CacheLoader(
                reader=SampleReader(store=self.store, manifest=self.manifest),
                batch_size=BATCH,
                window=WINDOW,
                concurrency=CONCURRENCY,
                remainder="pad",
                processes=processes,
            )
        return self._loader

    def close(self) -> None:
        """End the loader's worker processes."""
        if self._loader is not None:
            self._loader.close()

    def ours(self, epoch: int) -> Read:
        """Batches of the loader."""
        loader = self.loader()
        return lambda: sum(int(batch.weight.sum()) for batch in loader.epoch(Position(epoch=epoch)))

    def ours_worker(self, epoch: int) -> Read:
        """As `ours`, read and decoded in a process of the loader's own."""
        self.loader(processes=1)
        return self.ours(epoch)

    def raw(self, epoch: int) -> Read:
        """The ranges that the loader reads."""
        ranges = self._ranges(epoch)
        read = self._pread if isinstance(self.store, FileStore) else self._get

        def read_all() -> int:
            with ThreadPoolExecutor(CONCURRENCY) as pool:
                lengths = pool.map(lambda one: read(*one), ranges)
                assert all(length == wanted for length, (_, _, wanted) in zip(lengths, ranges, strict=True))
            return self.manifest.samples

        return read_all

    def whole(self, epoch: int) -> Read:
        """Whole shards: what the store gives to one who does nothing with it."""
        del epoch

        def read_all() -> int:
            with ThreadPoolExecutor(_WHOLE_SHARDS) as pool:
                lengths = pool.map(self._stream, [shard.object_key for shard in self.manifest.shards])
                assert sum(lengths) == self.manifest.size
            return self.manifest.samples

        return read_all

    def _stream(self, key: str) -> int:
        place = urlsplit(f"{self.store.url}/{key}")
        body = s3_client().get_object(Bucket=place.netloc, Key=place.path[1:])["Body"]
        return sum(len(chunk) for chunk in body.iter_chunks(_STOCK_READ))

    def _ranges(self, epoch: int) -> list[tuple[str, int, int]]:
        reader = SampleReader(store=self.store, manifest=self.manifest)
        order = self.loader().order(epoch)
        plans = [reader.plan(order[first : first + BATCH]) for first in range(0, len(order), BATCH)]
        return [
            (run.shard.object_key, int(run.rows["offset"][0]), run.size)
            for plan in plans
            for run in plan.runs
        ]

    def _pread(self, key: str, start: int, length: int) -> int:
        assert isinstance(self.store, FileStore), "it reads files"
        with self.store.path(key).open("rb", buffering=0) as file:
            return len(os.pread(file.fileno(), length, start))

    def _get(self, key: str, start: int, length: int) -> int:
        place = urlsplit(f"{self.store.url}/{key}")
        wanted = f"bytes={start}-{start + length - 1}"
        answer = s3_client().get_object(Bucket=place.netloc, Key=place.path[1:], Range=wanted)
        return len(answer["Body"].read())

    def webdataset(self, epoch: int) -> Read:
        """Tensors of each sample."""
        return lambda: sum(len(load(sample["safetensors"])) > 0 for sample in self._stock_samples())

    def webdataset_batches(self, epoch: int) -> Read:
        """As `webdataset`, with masks and facts, stacked."""
        return self._stock_batches

    def _stock_batches(self) -> int:
        samples, count = self._stock_samples(), 0
        while chosen := list(islice(samples, BATCH)):
            tensors = [load(sample["safetensors"]) for sample in chosen]
            masks = [np.asarray(Image.open(io.BytesIO(sample["mask.png"]))) for sample in chosen]
            batch = {name: torch.stack([one[name] for one in tensors]) for name in tensors[0]}
            batch["masks"] = torch.from_numpy(np.stack(masks) > 0).unsqueeze(1).float()
            facts = [json.loads(sample["json"]) for sample in chosen]
            assert len(facts) == len(batch["latents"])
            count += len(facts)
        return count

    def _stock_samples(self) -> Iterator[dict[str, Any]]:
        import webdataset
        from webdataset.gopen import gopen_schemes

        def open_s3(url: str, *_arguments: Any, **_options: Any) -> Any:
            place = urlsplit(url)
            body = s3_client().get_object(Bucket=place.netloc, Key=place.path[1:])["Body"]
            return io.BufferedReader(body, _STOCK_READ)  # tarfile asks for 10 KiB at a time

        gopen_schemes["s3"] = open_s3
        listed = self.store.get(shard_list_key(self.manifest.cache_key, self.manifest.manifest_id))
        shards = [line.removeprefix("file://") for line in listed.decode().split()]
        return iter(webdataset.WebDataset(shards, shardshuffle=False))


@functools.cache
def s3_client() -> Any:
    """Plain boto3, at its quickest."""
    import boto3
    from botocore.config import Config

    options = Config(
        max_pool_connections=64,
        s3={"addressing_style": "path"},
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", config=options)


def main() -> None:
    torch.set_num_threads(1)
    side, url, cache_key, manifest_id = sys.argv[1:]
    sides = Sides(url, cache_key, manifest_id)
    if isinstance(sides.store, S3Store):
        s3_client()  # before threads ask for it
    prepare: Callable[[int], Read] = getattr(sides, side)
    answer({"ready": True})
    for epoch, _ in enumerate(sys.stdin):
        read = prepare(epoch)
        started, cpu = time.perf_counter(), time.process_time()
        samples = read()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        assert samples == sides.manifest.samples, f"{samples} samples of {sides.manifest.samples}"
        answer({"seconds": seconds, "cpu_s": cpu_s, "resident": resident()})
    sides.close()


def resident() -> dict[str, float]:
    """Megabytes in memory: of this process, and of the largest of its children (a worker of the loader)."""

    def of(process: str) -> float:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else 0.0

    # Of the main thread, which starts them.
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return {"process": of("self"), "worker": max(map(of, children), default=0.0)}


def answer(figures: dict[str, Any]) -> None:
    """A line for who asked."""
    print(json.dumps(figures), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
