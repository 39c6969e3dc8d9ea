"""What one rank of a training does: samples and network in, the best model out. Knows nothing of Ray."""

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from ldznet.loss import mask_loss
from ldznet.modeling import SegmentationNetwork, build_network, unet_config_of
from ldznet.modeling.config import NetworkConfig
from ldznet.prediction_config import PredictionConfig
from ldznet.prompts import DEFAULT_TEMPLATE
from ldznet.scores import SegmentationScores
from pipeline.cache.manifest import Manifest
from pipeline.cache.spec import canonical_json
from pipeline.evaluation.example_pictures import example_picture
from pipeline.evaluation.scoring import run_network, score_set
from pipeline.loading.batch import Batch
from pipeline.loading.opening import open_evaluation_loader, open_training_loader
from pipeline.loading.source import BatchSource
from pipeline.models.card import write_card
from pipeline.models.folder import upload_model
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.online.features import OnlineFeatures
from pipeline.online.shard_order import ShardOrder
from pipeline.recipe import Recipe
from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.tracker import Tracker
from pipeline.training import ranks
from pipeline.training.cached_sets import CachedSets
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.divergence import NonFinitePredictionError
from pipeline.training.ema import EMA
from pipeline.training.engine import Engine, build_engine
from pipeline.training.loop import TrainOutcome, train
from pipeline.training.observer import TrainingObserver
from pipeline.training.starting_weights import start_network, starting_digest

logger = logging.getLogger(__name__)

VALIDATION_EXAMPLES = 4
PIXELS_PER_LATENT = 8


def training_identity(recipe: Recipe) -> str:
    """Names a training by what it computes: network, training and data. Equal recipes share one, and resume."""
    asked = {
        "network": recipe.network.model_dump(
            mode="json", exclude={"init_from"} if recipe.network.starts_trained else set()
        ),
        "train": recipe.train.identity(),
        "length": [recipe.train.steps, recipe.train.epochs],  # the schedule follows from it
        "data": recipe.request_digest(recipe.train_on),
        "validation": recipe.request_digest(recipe.validate_on) if recipe.validate_on else None,
        **recipe.loader.identity(),
    }
    if recipe.network.starts_trained:  # known by its weights, not by the folder or alias that names it
        asked["start"] = starting_digest(recipe)
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:12]


def train_on_this_rank(
    recipe: Recipe,
    *,
    cached: CachedSets,
    checkpoints: CheckpointStore,
    model_url: str,
    run_id: str | None,
    metrics_owner: str,
) -> TrainOutcome:
    """Train on this rank's share of the samples. Every rank calls it with equal arguments.

    Args:
        recipe: the resolved recipe.
        cached: what of the cache it reads.
        checkpoints: where checkpoints go and come from.
        model_url: store folder for the best model.
        run_id: the MLflow run to log to, from rank 0.
        metrics_owner: names the files in which metrics wait for MLflow, as the driver knows them.

    Raises:
        UserError: what is cached is gone, the network does not fit the frozen LDM, or a checkpoint is from other
            samples than those that would follow.
    """
    ranks.seed_everything(recipe.train.seed)
    store = open_store(recipe.cache.url)
    network = make_network(recipe)
    with OnlineFeatures(recipe, store=store, cached=cached) as online:
        source = make_source(recipe, store=store, cached=cached, online=online)
        check_same_ldm(recipe, source)
        engine = build_engine(network, forward=run_network, loss=mask_loss, config=recipe.train)
        ema = EMA(engine) if recipe.train.ema else None
        keeper = ModelKeeper(
            recipe=recipe,
            manifest=source.manifest,
            ldm_digest=source.ldm_digest,
            network=network.config,
            url=model_url,
        )
        with BackgroundTracker(recipe.tracking, folder=Path(recipe.output_folder)) as tracker:
            if ranks.rank() == 0:
                tracker.start(job="train", run_id=run_id, owner=metrics_owner)
            validator = None
            if recipe.validate_on is not None:
                loader = make_validation_source(
                    recipe,
                    recipe.validate_on,
                    store=store,
                    cached=cached,
                    online=online,
                    ldm_digest=source.ldm_digest,
                )
                validator = Validator(loader, tracker=tracker)
            outcome = train(
                engine=engine,
                ema=ema,
                source=source.batches,
                config=recipe.train,
                validate=validator,
                observer=TrainingObserver(tracker=tracker, title=f"{recipe.name}/{recipe.network.label}"),
                checkpoints=checkpoints,
                keep_model=keeper,
                identity=f"{training_identity(recipe)}-{source.order_digest}-{source.ldm_digest[:12]}",
            )
    engine.close()
    return outcome


@dataclass(frozen=True, kw_only=True)
class TrainingSource:
    """Where a training's batches come from. Both kinds give the same samples in the same order."""

    batches: BatchSource
    order_digest: str  # of the samples and their order, outside which a checkpoint's position means nothing
    manifest: Manifest | None  # None: there is no cache
    ldm_digest: str


def make_source(
    recipe: Recipe, *, store: ObjectStore, cached: CachedSets, online: OnlineFeatures
) -> TrainingSource:
    """This rank's batches of the set that trains: read from the cache, or computed from the photos."""
    manifest = cached.read(store, recipe.train_on)
    if recipe.train.features == "online":
        batches, order_digest = online.training_source()
        return TrainingSource(
            batches=batches,
            order_digest=order_digest,
            manifest=manifest,
            ldm_digest=online.ldm_digest,
        )
    assert manifest is not None, "the driver found it"
    return TrainingSource(
        batches=make_loader(recipe, store, manifest, batch_size=recipe.train.batch_size, shuffle=True),
        order_digest=ShardOrder.of_manifest(store, manifest).digest,
        manifest=manifest,
        ldm_digest=manifest.spec.ldm_digest,
    )


def check_same_ldm(recipe: Recipe, source: TrainingSource) -> None:
    """See that features come from the frozen LDM that the recipe names, as it is now. Collective.

    Raises:
        UserError: its folder has another content than when they were computed.
    """
    folder = resolve_ldm(recipe.ldm.source)
    if source.ldm_digest != ranks.agree(ldm_digest(folder) if ranks.rank() == 0 else ""):
        raise UserError(
            f"{recipe.ldm.source} is another LDM now than the one that computed the cached features: run "
            "`ldznet precompute` again, or name the folder of that one"
        )


def make_validation_source(
    recipe: Recipe,
    set_name: str,
    *,
    store: ObjectStore,
    cached: CachedSets,
    online: OnlineFeatures,
    ldm_digest: str,
) -> BatchSource:
    """This rank's share of a set, each sample once: from its cache where there is one; else computed, if allowed.

    Raises:
        UserError: the cached features are of another LDM than those that train, of this digest.
    """
    batch_size = ranks.world_size() * recipe.evaluate.batch_size
    manifest = cached.read(store, set_name)
    if manifest is None:
        return online.validation_source(set_name, batch_size=batch_size)
    if manifest.spec.ldm_digest != ldm_digest:
        raise UserError(
            f"the cached features of the set {set_name!r} are of another LDM than those that train: run "
            "`ldznet precompute` again, or name the folder of that one"
        )
    return make_loader(recipe, store, manifest, batch_size=batch_size, shuffle=False)


def make_network(recipe: Recipe) -> SegmentationNetwork:
    """The recipe's network, started from the frozen LDM's weights unless told otherwise."""
    folder = resolve_ldm(recipe.ldm.source)
    latent_side = recipe.set_named(recipe.train_on).view.size // PIXELS_PER_LATENT
    network = build_network(recipe.network.config(unet_config_of(folder), latent_side=latent_side))
    done = start_network(network, recipe)
    if ranks.rank() == 0:
        logger.info("%s: %s", recipe.network.label, done)
    return network


def make_loader(
    recipe: Recipe, store: ObjectStore, manifest: Manifest, *, batch_size: int, shuffle: bool
) -> BatchSource:
    """This rank's loader of a set: shuffled, as the recipe's `loader` says, for training; else each sample once."""
    if shuffle:
        return open_training_loader(
            recipe.loader,
            store=store,
            manifest=manifest,
            batch_size=batch_size,
            rank=ranks.rank(),
            ranks=ranks.world_size(),
            seed=recipe.train.seed,
        )
    return open_evaluation_loader(
        recipe.loader,
        store=store,
        manifest=manifest,
        batch_size=batch_size,
        rank=ranks.rank(),
        ranks=ranks.world_size(),
    )


class Validator:
    """Scores the validation set: sharded over ranks, each sample once, merged; pictures from rank 0."""

    def __init__(self, source: BatchSource, *, tracker: Tracker) -> None:
        self._source = source
        self._tracker = tracker

    def __call__(self, engine: Engine) -> Mapping[str, float]:
        """The figures, equal on every rank.

        Raises:
            NonFinitePredictionError: a prediction is no number; on every rank.
        """
        examples = VALIDATION_EXAMPLES if ranks.rank() == 0 else 0
        broken: list[str] = []
        own, pictures = score_set(
            lambda batch: _finite(engine.predict(batch), batch, broken=broken),
            loader=self._source,
            examples=examples,
        )
        keys = tuple(key for of_rank in ranks.collect(broken) for key in of_rank)
        if keys:
            raise NonFinitePredictionError(step=engine.step, keys=keys)
        merged = SegmentationScores()
        for state in ranks.collect(own.state()):
            merged.merge(SegmentationScores.from_state(state))
        scores = merged.compute(resamples=0)
        assert scores.miou.best.threshold is not None, "the best threshold is known"
        if pictures:
            picture = example_picture(pictures, threshold=scores.miou.best.threshold)
            self._tracker.log_pictures("validation", picture, step=engine.step)
        return {
            "miou": scores.miou.best.value,
            "threshold": scores.miou.best.threshold,
            "iou_fg": scores.iou_fg.best.value,
            "ap": scores.ap.value,
        }


def _finite(logits: Tensor, batch: Batch, *, broken: list[str]) -> Tensor:
    """Logits to go on with, so that all ranks come to the end; the keys of samples whose own are not finite."""
    good = torch.isfinite(logits.flatten(1)).all(1).tolist()  # B,1,H,W -> B
    counted = (batch.weight > 0).tolist()
    rows = zip(batch.keys, good, counted, strict=True)
    broken += [key for key, finite, counts in rows if counts and not finite]
    return logits if all(good) else logits.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, kw_only=True)
class ModelKeeper:
    """Keeps the best model so far as a `save_pretrained` folder on the store."""

    recipe: Recipe
    manifest: Manifest | None
    ldm_digest: str
    network: NetworkConfig
    url: str

    def __call__(self, state: dict[str, Tensor], step: int, metrics: Mapping[str, float]) -> None:
        """Write the folder and upload it, whole or not at all."""
        validated = self.recipe.validate_on
        policy = self.recipe.set_named(validated or self.recipe.train_on)
        prediction = PredictionConfig(
            ldm_source=_lasting_source(self.recipe.ldm.source),
            ldm_digest=self.ldm_digest,
            size=policy.view.size,
            timestep=policy.timesteps.middle,
            template=DEFAULT_TEMPLATE if DEFAULT_TEMPLATE in policy.prompts else policy.prompts[0],
            threshold=metrics.get("threshold", 0.5),
            compute_dtype=self.recipe.features.compute_dtype,
        )
        with tempfile.TemporaryDirectory(prefix="ldznet-model-") as scratch:
            folder = Path(scratch)
            network = build_network(self.network, device="meta")
            network.load_state_dict(state, assign=True)
            network.save_pretrained(folder)
            prediction.save(folder)
            write_card(
                folder,
                recipe=self.recipe,
                manifest=self.manifest,
                ldm_digest=self.ldm_digest,
                step=step,
                metrics=metrics,
                parameters=sum(weights.numel() for weights in network.parameters()),
            )
            upload_model(folder, url=self.url, facts={"step": step, **metrics})


def _lasting_source(source: str) -> str:
    """The LDM's folder as an absolute path, so that the model finds it from anywhere; a hub id as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source
