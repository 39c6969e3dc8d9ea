"""Shared work: 4.3 phrases a photo, in our order of work against the authors', on one CPU thread.

Ours commits a shard: image latents once a view, text once a distinct prompt, the UNet up to block 10. The authors'
order computes VAE, text encoder and the whole UNet for every phrase; it is given its tensors in memory, decodes and
writes nothing. Two records: `shared` views (latents once a photo) and `published` views (once a phrase).

python -m tests.benchmarks.shared_work
"""

from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import torch

from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.member_table import MemberTable
from pipeline.cache.plan import ShardPlan, plan_shards
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.object_store.opening import open_store
from pipeline.precompute.commit import commit_shard
from tests.benchmarks.arguments import Arguments, read_arguments
from tests.benchmarks.frozen_networks import FIFTH, FIFTH_PIXELS, TINY, Work, counted_work, make_ldm
from tests.benchmarks.made_photos import write_photos
from tests.benchmarks.ready_tensors import ReadyTensors
from tests.benchmarks.record import write_record
from tests.benchmarks.sides import ratio, spread, take_turns, timed
from tests.benchmarks.temporary import memory_folder

AUTHORS = "authors' order"
TARGETS = {"shared": 0.85, "published": 0.9}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    torch.set_num_threads(1)
    with memory_folder() as folder, torch.inference_mode():
        _measure(arguments, folder)


def _measure(arguments: Arguments, folder: Path) -> None:
    sizes, pixels, photos = (TINY, 64, 10) if arguments.quick else (FIFTH, FIFTH_PIXELS, 20)
    phrases = write_photos(folder / "data", photos=photos)
    ldm = make_ldm(folder / "ldm", sizes, dtype=torch.float32)
    work = counted_work(sizes, pixels=pixels)
    dataset = open_dataset(DataConfig(format="folder", root=str(folder / "data")))

    def planned(policy: str) -> tuple[CacheSpec, ShardPlan]:
        view = {"policy": policy, "size": pixels}
        spec = CacheSpec(
            ldm_digest="0" * 64,
            features=FeaturesConfig(),
            policy=PolicyConfig.model_validate({"view": view, "timesteps": {"low": 300, "high": 500}}),
        )
        digest = ContentDigests(store=dataset.store)
        with MemberTable.from_samples(dataset.samples("train"), draws=1, digest=digest) as table:
            (shard,) = plan_shards(table, spec_key=spec.key, samples_per_shard=10**6)
            return spec, shard.plan(table)

    def ours(policy: str) -> None:
        spec, plan = plans[policy]
        store = open_store(folder / uuid4().hex)
        receipt = commit_shard(plan, spec=spec, ldm=ldm, data=dataset.store, store=store)
        assert len(receipt.samples) == phrases

    plans = {policy: planned(policy) for policy in TARGETS}
    ready = ReadyTensors.read(folder / "data", pixels=pixels)
    sides = {policy: timed(lambda policy=policy: ours(policy)) for policy in TARGETS}
    figures = take_turns(
        {**sides, AUTHORS: timed(lambda: ready.estimates(ldm, FeaturesConfig()))}, rounds=arguments.rounds
    )
    prompts = len(ready.prompts)
    for policy, target in TARGETS.items():
        views = photos if policy == "shared" else phrases
        counted = _counted(work, phrases=phrases, views=views, prompts=prompts)
        measured = ratio(figures, AUTHORS, policy)
        write_record(
            name="shared_work" if policy == "shared" else "published_work",
            value=measured / counted,
            unit="of the counted ratio",
            better="higher",
            target=target,
            sides={label: figures[label] for label in (policy, AUTHORS)},
            sides_unit=f"s for {phrases} phrases",
            command="python -m tests.benchmarks.shared_work",
            about=(
                f"{phrases} phrases about {photos} photos with `{policy}` views of {pixels} px: a whole shard, "
                "decoded, computed, packed and committed to a folder in memory, against VAE, text encoder and whole "
                "UNet for every phrase on tensors in memory. SD's topology at a fifth of its widths, random weights, "
                "fp32, one thread for the networks, the same batch shapes. The value is the ratio of times over the "
                "ratio of counted operations."
            ),
            details={
                "measured ratio": round(measured, 3),
                "ratio of single rounds": spread(figures, AUTHORS, policy),
                "counted ratio": round(counted, 3),
                "phrases a photo": round(phrases / photos, 2),
                "distinct prompts a phrase": round(prompts / phrases, 2),
                "counted GFLOP a sample": {
                    "VAE": round(work.vae / 1e9, 2),
                    "text encoder": round(work.text / 1e9, 2),
                    "UNet up to block 10": round(work.stopped / 1e9, 2),
                    "whole UNet": round(work.unet / 1e9, 2),
                },
            },
            threads=1,
            folder=arguments.folder,
        )  # fmt: skip


def _counted(work: Work, *, phrases: int, views: int, prompts: int) -> float:
    theirs = phrases * (work.vae + work.text + work.unet)
    return theirs / (views * work.vae + prompts * work.text + phrases * work.stopped)


if __name__ == "__main__":
    main()
