"""Overhead: a real precompute job with one worker, against a bare loop of the same networks on tensors in memory.

python -m tests.benchmarks.precompute_overhead
"""

import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.spec import FeaturesConfig
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.ready_tensors import ReadyTensors
from tests.benchmarks.real_precompute import one_ray, steady_rate, write_job
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.sides import ratio, spread, take_turns
from tests.benchmarks.temporary import memory_folder

# Smaller than usual, because shards are: padding of their last batches is to take the share that it has in shards of
# the usual 256 MB. On a CPU the batch size matters little otherwise, and both sides have the same.
BATCHES = {"image_batch": 2, "prompt_batch": 8, "feature_batch": 4}
BARE_PHOTOS = 50
OURS, BARE = "precompute, 1 worker", "bare loop"
BESIDE = "bare loop, another process spinning"  # what the machine takes where its other core has work, whatever work


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    torch.set_num_threads(1)
    # 16 shards: what one of the two under way is ahead of the other at either end of the window weighs little.
    photos = 14 if arguments.quick else 240
    with memory_folder() as folder, s3_server(folder) as bucket, one_ray(workers=1):
        mebibytes = 1 if arguments.quick else 8
        job = write_job(
            folder, quick=arguments.quick, photos=photos, shard_mebibytes=mebibytes, features=BATCHES
        )
        ready = ReadyTensors.read(job.data, pixels=job.pixels, photos=BARE_PHOTOS)
        ldm = FrozenLDM.from_pretrained(job.ldm, last_block=10)
        sides = {
            OURS: lambda: steady_rate(job, place=f"s3://{bucket}", workers=1),
            BARE: lambda: _bare_rate(ready, ldm),
            BESIDE: lambda: _bare_rate_beside(ready, ldm),
        }
        sides[BARE]()
        figures = take_turns(sides, rounds=arguments.rounds, warm_ups=0)
    write_record(
        name="precompute_overhead",
        value=ratio(figures, OURS, BARE),
        unit="of the bare loop",
        better="higher",
        target=0.9,
        sides=figures,
        sides_unit="samples/s",
        command="python -m tests.benchmarks.precompute_overhead",
        about=(
            f"`precompute` on Ray with one worker, {job.samples} samples on {photos} photos with `shared` views of "
            f"{job.pixels} px, to SeaweedFS on the same machine, between commits while all shards that a worker takes "
            "at a time are under way (start-up, loading and the end left out), against VAE, text encoder and UNet to "
            "block 10 in full batches on tensors in memory, whose results are dropped. SD's topology at a fifth of its "
            "widths, random weights, fp32, equal batches, one thread for the networks on either side; ours decodes, "
            "packs and uploads on other threads."
        ),
        details={
            "ratio of single rounds": spread(figures, OURS, BARE),
            "of the bare loop beside a process that spins": round(ratio(figures, OURS, BESIDE), 3),
        },
        threads=1,
        folder=arguments.folder,
    )


def _bare_rate(ready: ReadyTensors, ldm: FrozenLDM) -> float:
    """Samples a second of one pass over everything."""
    start = time.perf_counter()
    with torch.inference_mode():
        ready.features(ldm, FeaturesConfig.model_validate(BATCHES))
    return len(ready) / (time.perf_counter() - start)


def _bare_rate_beside(ready: ReadyTensors, ldm: FrozenLDM) -> float:
    """The same while a process of no memory traffic keeps another core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        try:
            return _bare_rate(ready, ldm)
        finally:
            spinning.kill()


if __name__ == "__main__":
    main()
