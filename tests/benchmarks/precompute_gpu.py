"""Precompute on one GPU at SD 1.4 size, bf16: samples/s, model FLOP utilisation, and how long the GPU waits.

Four variants: channels-last and `torch.compile`, each on and off. Needs a CUDA GPU; takes some ten minutes.

python -m tests.benchmarks.precompute_gpu
"""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import uuid4

import torch

from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.member_table import MemberTable
from pipeline.cache.plan import ShardPlan, plan_shards
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.object_store.opening import open_store
from pipeline.precompute.commit import commit_shard
from pipeline.precompute.networks import Networks
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.frozen_networks import SD_1_4, TINY, Sizes, counted_work, make_ldm
from tests.benchmarks.made_photos import write_photos
from tests.benchmarks.record import write_record
from tests.benchmarks.temporary import memory_folder

# Dense bf16 TFLOP/s by the makers' data sheets.
PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
}
VARIANTS = {
    "as loaded": {},
    "channels-last": {"channels_last": True},
    "compiled": {"compile": True},
    "channels-last, compiled": {"channels_last": True, "compile": True},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What every variant computes."""

    data: Path
    photos: int
    pixels: int
    per_shard: int
    sizes: Sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One pass over all shards."""

    samples_a_second: float
    waiting: float  # share of the time in which the device had no pass


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    if not torch.cuda.is_available():
        sys.stderr.write("precompute_gpu needs a CUDA GPU, and torch finds none here\n")
        sys.exit(2)
    with memory_folder() as folder:
        photos = 20 if arguments.quick else 300
        samples = write_photos(folder / "data", photos=photos)
        work = Work(
            data=folder / "data",
            photos=photos,
            pixels=64 if arguments.quick else 384,
            per_shard=20 if arguments.quick else 160,
            sizes=TINY if arguments.quick else SD_1_4,
        )
        runs = {
            label: measure(folder / uuid4().hex, work, options, device="cuda", rounds=arguments.rounds)
            for label, options in VARIANTS.items()
        }
    rates = {label: [run.samples_a_second for run in found] for label, found in runs.items()}
    best = max(rates, key=lambda label: median(rates[label]))
    counted = counted_work(work.sizes, pixels=work.pixels)
    flops = counted.vae * photos / samples + counted.text + counted.stopped  # a sample
    peak = _peak_flops(torch.cuda.get_device_name())
    write_record(
        name="precompute_gpu",
        value=median(rates[best]),
        unit="samples/s",
        better="higher",
        target=None,
        sides=rates,
        sides_unit="samples/s",
        command="python -m tests.benchmarks.precompute_gpu",
        about=(
            f"Shards of {work.per_shard} samples ({samples} samples on {photos} photos, `shared` views of "
            f"{work.pixels} px) computed by one worker's code, two at a time, and committed to a folder in memory: SD "
            "1.4 sizes, random weights, bf16. The value is the quickest variant's; the first pass over all shards, "
            "which compiles, does not count."
        ),
        details={
            "quickest variant": best,
            "counted GFLOP a sample": round(flops / 1e9, 1),
            "model FLOP utilisation": {label: _utilisation(rates[label], flops, peak) for label in rates},
            "share of time that the GPU waits": {
                label: f"{median(run.waiting for run in found):.1%}" for label, found in runs.items()
            },
            "peak TFLOP/s taken": "unknown" if peak is None else round(peak / 1e12),
        },
        folder=arguments.folder,
    )


def measure(folder: Path, work: Work, options: dict[str, bool], *, device: str, rounds: int) -> list[Run]:
    """Runs of one variant, after one that does not count."""
    features = FeaturesConfig.model_validate(
        {"compute_dtype": "bf16", "image_batch": 16, "prompt_batch": 64, "feature_batch": 32, **options}
    )
    ldm = make_ldm(
        folder / "ldm",
        work.sizes,
        dtype=torch.bfloat16,
        device=device,
        channels_last=features.channels_last,
        compiled=features.compile,
    )
    policy = {"view": {"policy": "shared", "size": work.pixels}, "timesteps": {"low": 300, "high": 500}}
    spec = CacheSpec(ldm_digest="0" * 64, features=features, policy=PolicyConfig.model_validate(policy))
    plans = _plans(work, spec)
    with Networks(ldm) as networks:
        runs = [_run(folder, work, spec, plans, networks) for _ in range(1 + rounds)]
    return runs[1:]


def _run(folder: Path, work: Work, spec: CacheSpec, plans: Sequence[ShardPlan], networks: Networks) -> Run:
    data = open_dataset(DataConfig(format="folder", root=str(work.data))).store
    store = open_store(folder / uuid4().hex)
    decoders = max(2, len(os.sched_getaffinity(0)) // 2 - 1)

    def commit(plan: ShardPlan) -> int:
        receipt = commit_shard(plan, spec=spec, ldm=networks, data=data, store=store, decoders=decoders)
        return len(receipt.samples)

    busy, start = networks.busy_s, time.perf_counter()
    with ThreadPoolExecutor(2) as shards:
        samples = sum(shards.map(commit, plans))
    seconds = time.perf_counter() - start
    for info in list(store.list()):  # memory is not for keeping them
        store.delete(info.key)
    return Run(samples_a_second=samples / seconds, waiting=1 - (networks.busy_s - busy) / seconds)


def _plans(work: Work, spec: CacheSpec) -> list[ShardPlan]:
    dataset = open_dataset(DataConfig(format="folder", root=str(work.data)))
    digest = ContentDigests(store=dataset.store, path=work.data.parent / "digests.sqlite")
    with MemberTable.from_samples(dataset.samples("train"), draws=1, digest=digest) as table:
        shards = plan_shards(table, spec_key=spec.key, samples_per_shard=work.per_shard)
        return [shard.plan(table) for shard in shards]


def _peak_flops(gpu: str) -> float | None:
    return next((peak * 1e12 for name, peak in PEAKS.items() if name in gpu), None)


def _utilisation(rates: Sequence[float], flops: float, peak: float | None) -> str:
    return "unknown" if peak is None else f"{median(rates) * flops / peak:.1%}"


if __name__ == "__main__":
    main()
