"""Training from cached features against features computed at each step: in the authors' order of work, and in ours.

Loop, engine, network and samples are the same; only where batches come from differs. Each ratio stands beside the one
that counted operations allow: (frozen networks + training) / training. Three records: the two ratios, and the share of
its time for which the training from the cache waits for data.

python -m tests.benchmarks.online_training
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldznet.frozen_ldm import FrozenLDM
from ldznet.loss import mask_loss
from ldznet.miniature_ldm import build_miniature_ldm
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.spec import FeaturesConfig
from pipeline.datasets.opening import open_dataset
from pipeline.evaluation.scoring import run_network
from pipeline.freed_memory import keep_freed_memory
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position
from pipeline.loading.source import BatchSource
from pipeline.object_store.opening import open_store
from pipeline.online.features import OnlineFeatures
from pipeline.online.source import OnlineSource
from pipeline.precompute.commit import commit_shard
from pipeline.precompute.sets import finish_set, missing_work, plan_sets
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.training import ranks
from pipeline.training.cached_sets import CachedSets
from pipeline.training.ema import EMA
from pipeline.training.engine import build_engine
from pipeline.training.loop import train
from pipeline.training.rank_training import make_network, make_source
from tests.benchmarks.arguments import Arguments, read_arguments
from tests.benchmarks.frozen_networks import FIFTH as FIFTH_SIZES
from tests.benchmarks.frozen_networks import TINY as TINY_SIZES
from tests.benchmarks.frozen_networks import Work, counted_work
from tests.benchmarks.made_photos import write_photos
from tests.benchmarks.real_precompute import FIFTH, TINY
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.sides import ratio, spread, take_turns
from tests.benchmarks.temporary import memory_folder

CACHED, AUTHORS, ONLINE = "cached", "authors' order", "online"
RECORDS = {AUTHORS: "cached_against_authors", ONLINE: "cached_against_online"}
TARGET, MOST_WAITING = 0.9, 0.02
BATCH, PHOTOS, STEPS = 32, 15, 2  # the published batch; an epoch of the 65 phrases, which is a round
# Attention heads 32 to 128 wide, near SD's 40 to 160: with eight heads, as SD has, they would be 8 wide here, which a
# CPU is slow at, in training more than in the frozen networks.
HEADS = 2
WIDE_HEADS = FIFTH.model_copy(update={"attention_heads": HEADS})
WIDE_HEADS_SIZES = replace(FIFTH_SIZES, heads=HEADS)
COMMAND = "python -m tests.benchmarks.online_training"
ABOUT = (
    "`published` views, so that every phrase has latents of its own; SD's topology at a fifth of its widths on 192 px, "
    "attention heads about as wide as SD's, random weights, fp32, batch 32, AdamW and EMA in the step, DDP on one "
    "rank, one thread for the networks."
)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as a rank does
    with memory_folder() as folder, s3_server(folder) as bucket:
        recipe = _recipe(folder, url=f"s3://{bucket}/cache", quick=arguments.quick)
        _precompute(recipe)
        store = open_store(recipe.cache.url)
        online_recipe = recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"features": "online"})}
        )
        with (
            ranks.process_group(),
            OnlineFeatures(
                online_recipe, store=store, cached=CachedSets.find(online_recipe, store)
            ) as online,
        ):
            cached = make_source(
                recipe, store=store, cached=CachedSets.find(recipe, store), online=online
            ).batches
            computed = make_source(
                online_recipe, store=store, cached=CachedSets.find(online_recipe, store), online=online
            ).batches
            assert isinstance(computed, OnlineSource)
            _measure(arguments, recipe, cached=cached, online=computed)


def _recipe(folder: Path, *, url: str, quick: bool) -> Recipe:
    pixels = 64 if quick else 192
    write_photos(folder / "data", photos=PHOTOS)
    ldm = build_miniature_ldm(
        folder / "ldm", config=TINY if quick else WIDE_HEADS, phrases=["attribute noun"]
    )
    published = {
        "split": "train",
        "view": {"policy": "published", "size": pixels},
        "timesteps": {"low": 300, "high": 500},
        "prompts": "published",
    }
    content = {
        "name": "benchmark",
        "data": {"format": "folder", "root": str(folder / "data")},
        "ldm": {"source": str(ldm)},
        "sets": {"train": published},
        "validate_on": None,
        "features": {"threads": 1},
        "cache": {"url": url, "shard_mebibytes": 8},
        "loader": {"concurrency": 2},
        "train": {"engine": "ddp", "steps": STEPS, "batch_size": BATCH, "lr": 1e-6, "log_every": STEPS},
        "tracking": {"enabled": False},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return load_recipe(folder / "recipe.yaml")


def _precompute(recipe: Recipe) -> None:
    store, data = open_store(recipe.cache.url), open_dataset(recipe.data).store
    ldm = FrozenLDM.from_pretrained(recipe.ldm.source, last_block=max(recipe.features.blocks))
    for plan in plan_sets(recipe, store=store):
        with plan.table:
            computed = {
                work.name: CommittedShard.from_receipts(
                    commit_shard(work.shard.plan(plan.table), spec=work.spec, ldm=ldm, data=data, store=store)
                )
                for work in missing_work(plan, store=store)
            }
            finish_set(recipe, plan, store=store, computed=computed)


@dataclass
class AuthorsOrder:
    """Batches whose features were computed in the authors' order: all networks whole, for every phrase, each time.

    It is given its photos as tensors in memory, and batches of the cache to train on: it reads and decodes nothing.
    """

    ldm: FrozenLDM
    features: FeaturesConfig
    batches: list[Batch]
    images: list[Tensor]  # B,3,H,W of each batch

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, position: Position) -> Iterator[Batch]:
        for batch, images in zip(self.batches[position.batch :], self.images[position.batch :], strict=True):
            timesteps = torch.tensor([facts["timestep"] for facts in batch.facts])
            noise = torch.randn_like(batch.latents)
            parts = zip(images.split(self.features.image_batch), noise.split(self.features.image_batch))  # noqa: B905 - of equal lengths
            z = torch.cat([self.ldm.encode_images(part, noise=draw) for part, draw in parts])
            context = self.ldm.encode_prompts([facts["prompt"] for facts in batch.facts])
            self.ldm.noise_estimate(self.ldm.add_noise(z, noise, timesteps), timesteps, context)
            yield batch


@dataclass
class Told:
    """What the loop told of one round."""

    figures: dict[str, float] = field(default_factory=dict)

    def on_start(self, *, step: int, total: int) -> None: ...

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
        self.figures = dict(metrics)

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None: ...

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None: ...


def _measure(arguments: Arguments, recipe: Recipe, *, cached: BatchSource, online: OnlineSource) -> None:
    network, pixels = make_network(recipe), recipe.set_named("train").view.size
    batches = list(cached.epoch(Position()))
    authors = AuthorsOrder(
        ldm=FrozenLDM.from_pretrained(recipe.ldm.source),
        features=recipe.features,
        batches=batches,
        images=[torch.rand(BATCH, 3, pixels, pixels) * 2 - 1 for _ in batches],
    )
    work = counted_work(TINY_SIZES if arguments.quick else WIDE_HEADS_SIZES, pixels=pixels)
    counted = Counted.of(work, batches, step=counted_step(network, batches[0]))
    engine = build_engine(network, forward=run_network, loss=mask_loss, config=recipe.train)
    ema, waits = EMA(engine), Waits()

    def rate(label: str, source: BatchSource) -> Callable[[], float]:
        def measure() -> float:
            told, before = Told(), online.waited_s
            train(engine=engine, ema=ema, source=source, config=recipe.train, observer=told)
            figures = told.figures
            if label == CACHED:
                waits.cached.append(figures["data_wait_share"])
            if label == ONLINE:
                seconds = len(batches) * BATCH / figures["samples_per_second"]
                waits.online.append((online.waited_s - before) / seconds)
            return figures["samples_per_second"]

        return measure

    sources = {CACHED: cached, ONLINE: online, AUTHORS: authors}
    sides = {label: rate(label, source) for label, source in sources.items()}
    figures = take_turns(sides, rounds=arguments.rounds)
    waits = Waits(cached=waits.cached[-arguments.rounds :], online=waits.online[-arguments.rounds :])
    engine.close()
    for label in (AUTHORS, ONLINE):
        _write_ratio(arguments, label, figures, counted, waits)
    _write_waiting(arguments, waits)


@dataclass(kw_only=True)
class Waits:
    """Share of each round in which nothing was computed for want of data."""

    cached: list[float] = field(default_factory=list)
    online: list[float] = field(default_factory=list)  # for photos


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Counted floating-point operations of a sample."""

    step: float  # forward and backward
    frozen: Mapping[str, float]

    @classmethod
    def of(cls, work: Work, batches: Sequence[Batch], *, step: float) -> "Counted":
        """Online, text is encoded once a distinct prompt of a batch; the VAE runs for every phrase's own view."""
        prompts = sum(len({facts["prompt"] for facts in batch.facts}) for batch in batches)
        samples = len(batches) * BATCH
        frozen = {
            AUTHORS: work.vae + work.text + work.unet,
            ONLINE: work.vae + work.text * prompts / samples + work.stopped,
        }
        return cls(step=step, frozen=frozen)

    def bound(self, label: str) -> float:
        """How much faster a step can be without the frozen networks."""
        return (self.frozen[label] + self.step) / self.step


def counted_step(network: nn.Module, batch: Batch) -> float:
    """Operations of a training step, forward and backward, a sample."""
    whole = batch.to(torch.device("cpu"), torch.float32)
    # Attention by its own products: those of the fused kernel are not counted on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mask_loss(run_network(network, whole), whole.masks, whole.weight).backward()
    network.zero_grad()
    return float(counter.get_total_flops()) / len(batch.keys)


def _write_ratio(
    arguments: Arguments, label: str, figures: dict[str, list[float]], counted: Counted, waits: Waits
) -> None:
    measured, bound = ratio(figures, CACHED, label), counted.bound(label)
    how = {
        AUTHORS: "VAE, text encoder and the whole UNet for every phrase, on tensors in memory",
        ONLINE: (
            "photos decoded on two threads, latents once a view, text once a prompt, the UNet up to block 10, all "
            "passes full"
        ),
    }[label]
    details: dict[str, Any] = {
        "measured ratio": round(measured, 3),
        "ratio of single rounds": spread(figures, CACHED, label),
        "counted bound": round(bound, 3),
        "counted bound at SD 1.4 size, 384 px": 1.83 if label == AUTHORS else 1.67,
        "counted GFLOP a sample": {
            "training step": round(counted.step / 1e9, 2),
            label: round(counted.frozen[label] / 1e9, 2),
        },
    }
    if label == ONLINE:
        details["share of time waiting for photos, online"] = round(median(waits.online), 4)
    write_record(
        name=RECORDS[label],
        value=measured / bound,
        unit="of the counted bound",
        better="higher",
        target=TARGET,
        sides={one: figures[one] for one in (CACHED, label)},
        sides_unit="samples/s",
        command=COMMAND,
        about=(
            f"Training an LD-ZNet from features on SeaweedFS on the same machine, against the same steps with features "
            f"computed first: {how}. {ABOUT} The value is the ratio of samples a second over the counted bound, "
            "(frozen + training) / training operations."
        ),
        details=details,
        threads=1,
        folder=arguments.folder,
    )


def _write_waiting(arguments: Arguments, waits: Waits) -> None:
    write_record(
        name="training_data_wait",
        value=median(waits.cached),
        unit="of the time",
        better="lower",
        target=MOST_WAITING,
        sides={CACHED: waits.cached},
        sides_unit="share of an epoch",
        command=COMMAND,
        about=(
            "Share of its time for which the training from the cache waits for a batch, the first of an epoch counted, "
            f"as the training itself reports it. {ABOUT}"
        ),
        threads=1,
        folder=arguments.folder,
    )


if __name__ == "__main__":
    main()
