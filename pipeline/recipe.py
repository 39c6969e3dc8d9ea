"""A recipe: the typed, frozen configuration of a whole experiment, from data to report."""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from ldznet.blocks import PAPER_BLOCKS
from ldznet.config import Config
from ldznet.miniature_ldm import MiniatureConfig
from ldznet.modeling.config import Kind, NetworkConfig, UNetConfig
from ldznet.noise_map_config import NoiseMapConfig
from ldznet.prompts import DEFAULT_TEMPLATE
from pipeline.cache.spec import SCHEMA_VERSION, CacheSpec, FeaturesConfig, PolicyConfig, canonical_json
from pipeline.datasets.opening import DataConfig, Phrases
from pipeline.loading.config import LoaderConfig
from pipeline.planning.config import PlanConfig
from pipeline.probing.config import ProbeConfig
from pipeline.scenes.config import ScenesConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.training.config import TrainConfig
from pipeline.worker_count import WorkerCount, most_workers

# Of a set: part of names of files and of metrics, of which MLflow takes no others.
_SET_NAME = re.compile(r"[^\W_][\w.-]*")


class LdmConfig(Config):
    """The frozen latent diffusion model."""

    source: str  # a folder in Stable Diffusion's diffusers layout, or a hub id


class SetConfig(PolicyConfig):
    """A set of cached samples: a split of a data set, and how its samples become network inputs."""

    split: str
    data: DataConfig | None = None  # another data set than the recipe's own
    phrases: Phrases | None = None  # as data.phrases, for this set alone


class CacheConfig(Config):
    """Where shards go, how large they are, and who computes them."""

    url: str  # s3://bucket/prefix, file:///folder or a path
    shard_mebibytes: int = Field(default=256, ge=1, le=4096)  # one conditional PUT holds 5 GiB at most
    max_failed_share: float = Field(default=0.02, ge=0, le=1)  # above it the job stops
    workers: WorkerCount = 1  # as many as the cluster has room for, up to this bound
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    accelerator: str | None = Field(
        default=None, min_length=1
    )  # only on nodes with it, by Ray's name: A100, H100
    wait_minutes: float = Field(default=30, gt=0)  # for room, where there are fewer workers than the least
    attempts: int = Field(default=4, ge=1)  # for a shard whose worker dies

    @property
    def max_workers(self) -> int:
        """Workers at most."""
        return most_workers(self.workers)

    @property
    def min_workers(self) -> int:
        """Workers without which it neither begins nor goes on for long."""
        return 1 if isinstance(self.workers, int) else self.workers.min


class NetworkOptions(Config):
    """The network to train. Its UNet has the frozen LDM's sizes, and starts from the LDM's weights unless told."""

    kind: Kind = "ldznet"
    blocks: tuple[int, ...] = PAPER_BLOCKS  # fused blocks
    fusion: Literal["cross_attention", "concat"] = "cross_attention"
    positional: Literal["learned", "sinusoidal"] = "learned"
    text: Literal["phrase", "none"] = "phrase"  # none, an ablation: the phrase comes by the features alone
    gradient_checkpointing: bool = False
    init_from: str = Field(default="ldm", min_length=1)  # ldm, random, or a trained network to go on from

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Trainings whose networks read the phrase keep the identity that they had before any did not."""
        content: dict[str, Any] = serialise(self)
        if self.text == "phrase":
            content.pop("text", None)
        return content

    @property
    def starts_trained(self) -> bool:
        """Whether it goes on from a network that was trained before."""
        return self.init_from not in {"ldm", "random"}

    @property
    def label(self) -> str:
        """A short name that tells variants apart, such as `znet`, `ldznet-concat` or `ldznet-blocks-8-9`."""
        parts: list[str] = [self.kind]
        if self.kind == "ldznet":
            parts += ["concat"] if self.fusion == "concat" else []
            parts += ["sinusoidal"] if self.positional == "sinusoidal" else []
            if tuple(sorted(set(self.blocks))) != PAPER_BLOCKS:
                parts += ["blocks", *map(str, sorted(set(self.blocks)))]
        parts += ["no-text"] if self.text == "none" else []
        parts += ["random-init"] if self.init_from == "random" else []
        parts += ["adapted"] if self.starts_trained else []
        return "-".join(parts)

    def config(self, unet: UNetConfig, *, latent_side: int) -> NetworkConfig:
        """The whole configuration, given that of the LDM's UNet and the side of the latents to train on."""
        chosen = self.model_dump(exclude={"init_from"})
        return NetworkConfig(unet=unet, positional_latent_side=latent_side, **chosen)


class SystemConfig(Config):
    """Something to score. In a recipe the source alone is enough: `models: [runs/a/models/ldznet, masks/sam3]`."""

    # A model folder or models:/NAME@ALIAS; a CLIPSeg folder or hub id; a folder of masks (see mask_folder.py); or
    # `noise-map`: the frozen LDM itself, untrained (figure 1 of the paper).
    source: str = Field(min_length=1)
    name: str | None = Field(default=None, pattern=r"^[\w. -]+$")  # in tables; none: the source's last part
    pixels: Literal["photo", "view"] = "photo"  # what CLIPSeg sees: the original photo, or the cached view
    prompt: str = DEFAULT_TEMPLATE  # CLIPSeg's
    noise_map: NoiseMapConfig = NoiseMapConfig()
    # Of a network: `others` gives each phrase another sample's block features, a control of what it takes from its own.
    features: Literal["own", "others"] = "own"


class EvaluateConfig(Config):
    """What `ldznet evaluate` scores."""

    sets: tuple[str, ...] = ()  # none: every set but the one that trains
    models: tuple[SystemConfig, ...] = ()  # none: those that this recipe trained
    # clipseg: squashed to the network's size, as in the paper's tables. original: at the photo's own size, as
    # PhraseCut and the referring sets do it; needs the data set at hand.
    protocols: tuple[Literal["clipseg", "original"], ...] = Field(default=("clipseg",), min_length=1)
    standard_threshold: float | Literal["val"] = "val"  # of mean IoU, overall IoU, Pr@; without a val set 0.5
    batch_size: int = Field(default=16, ge=1)
    # auto: on a GPU of the Ray cluster, where the job's own process has none and the cluster has any now; gpu: waited
    # for; here: in the job's process.
    device: Literal["auto", "gpu", "here"] = "auto"
    examples: int = Field(default=12, ge=0)  # phrases kept as pictures, a set
    bootstrap: int = Field(default=1000, ge=0)

    @field_validator("standard_threshold")
    @classmethod
    def _counted_at(cls, value: float | str) -> float | str:
        if isinstance(value, float) and round(value * 50, 6) not in range(1, 50):
            raise ValueError("give val, or one of 0.02, 0.04 … 0.98, where pixels are counted")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _sources(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return [{"source": one} if isinstance(one, str) else one for one in value]


class Recipe(Config):
    """Everything that an experiment is made of. Jobs read the parts that they need."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str = "runs/{name}"  # what a run leaves behind on this machine
    storage: str | None = None  # URL where checkpoints and models go; none: the output folder
    data: DataConfig
    ldm: LdmConfig
    scenes: ScenesConfig | None = None  # `ldznet scenes` generates them at data.root
    miniature: MiniatureConfig | None = None  # `ldznet miniature` makes it at ldm.source: no weights, no hub
    sets: dict[str, SetConfig] = Field(min_length=1)
    features: FeaturesConfig = FeaturesConfig()
    cache: CacheConfig
    loader: LoaderConfig = LoaderConfig()
    network: NetworkOptions = NetworkOptions()
    train: TrainConfig = TrainConfig()
    train_on: str = "train"  # the set that trains
    validate_on: str | None = "val"  # the set that chooses the best weights and the threshold
    evaluate: EvaluateConfig = EvaluateConfig()
    probe: ProbeConfig = ProbeConfig()
    tracking: TrackingConfig = TrackingConfig()
    plan: PlanConfig = PlanConfig()

    @field_validator("sets")
    @classmethod
    def _named(cls, sets: dict[str, SetConfig]) -> dict[str, SetConfig]:
        for name in sets:
            if _SET_NAME.fullmatch(name) is None:
                raise ValueError(
                    f"{name!r} cannot name a set: take letters, digits, _, . and -, beginning with a letter or digit"
                )
        return sets

    @model_validator(mode="after")
    def _names_known(self) -> Self:
        named = {
            "train_on": (self.train_on,),
            "validate_on": (self.validate_on,),
            "evaluate.sets": self.evaluate.sets,
        }
        for key, names in named.items():
            unknown = [name for name in names if name is not None and name not in self.sets]
            if unknown:
                raise ValueError(
                    f"{key} names {unknown[0]!r}, but sets has only {', '.join(sorted(self.sets))}"
                )
        return self

    @model_validator(mode="after")
    def _validates_soundly(self) -> Self:
        if self.validate_on is not None and self._real_split(self.validate_on).startswith("test"):
            raise ValueError(
                f"validate_on={self.validate_on} is of the test split, which only measures: name a set of val, or null"
            )
        if self.validate_on is None and self.train.patience is not None:
            raise ValueError(
                "train.patience waits for better validations, and validate_on=null has none: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _features_suffice(self) -> Self:
        missing = sorted(set(self.network.blocks) - set(self.features.blocks))
        if self.network.kind == "ldznet" and missing:
            raise ValueError(f"network.blocks fuses block {missing[0]}, which features.blocks does not cache")
        if self.network.kind == "rgbnet" and not self.features.keep_images:
            raise ValueError("network.kind=rgbnet trains on pixels: set features.keep_images=true")
        if self.train.draws == "fresh" and self.sets[self.train_on].is_grid:
            raise ValueError(
                f"sets.{self.train_on}.timesteps.grid has so many draws and no more: set train.online_draws=cycle"
            )
        return self

    @model_validator(mode="after")
    def _places_fit(self) -> Self:
        if self.train.features == "online" and self.loader.mode != "indexed":
            raise ValueError(
                f"loader.mode={self.loader.mode} reads shards, which train.features=online does not: leave it out"
            )
        if self.loader.mode == "sequential" and not isinstance(self.train.workers, int):
            raise ValueError(
                "loader.mode=sequential deals shards to a fixed number of ranks: give train.workers a number"
            )
        if "://" in self.output:
            raise ValueError(
                f"output={self.output} is no local folder: for checkpoints and models elsewhere set storage"
            )
        return self

    @property
    def scored_sets(self) -> tuple[str, ...]:
        """What `ldznet evaluate` scores: those named, else every set but the one that trains."""
        return self.evaluate.sets or tuple(name for name in self.sets if name != self.train_on)

    @property
    def output_folder(self) -> str:
        """`output` with the recipe's name filled in."""
        return self.output.replace("{name}", self.name)

    @property
    def storage_url(self) -> str:
        """Where checkpoints and models go."""
        return self.storage.rstrip("/") if self.storage else f"{Path(self.output_folder).absolute()}/storage"

    def set_named(self, name: str) -> SetConfig:
        """A set of the recipe. `ValueError` names those there are."""
        if name not in self.sets:
            raise ValueError(f"the recipe has no set {name!r}, only {', '.join(sorted(self.sets))}")
        return self.sets[name]

    def data_of(self, set_name: str) -> DataConfig:
        """The data set that a set is taken from."""
        chosen = self.set_named(set_name)
        data = chosen.data or self.data
        return data if chosen.phrases is None else data.model_copy(update={"phrases": chosen.phrases})

    @property
    def validates_on_training_photos(self) -> bool:
        """Whether the best weights would be chosen by a split of a data set that trains."""
        if self.validate_on is None:
            return False
        splits = set()
        for name in (self.train_on, self.validate_on):
            data = self.data_of(name)
            splits.add((data.format, data.root, data.refer, self._real_split(name)))
        return len(splits) == 1

    def _real_split(self, set_name: str) -> str:
        """The data set's own name of a set's split."""
        split = self.set_named(set_name).split
        return self.data_of(set_name).splits.get(split, split)

    def cache_spec(self, set_name: str, *, ldm_digest: str) -> CacheSpec:
        """The numeric specification of a set's features."""
        chosen = self.set_named(set_name)
        policy = PolicyConfig(
            view=chosen.view, timesteps=chosen.timesteps, prompts=chosen.prompts, draws=chosen.draws
        )
        return CacheSpec(ldm_digest=ldm_digest, features=self.features, policy=policy)

    def request_digest(self, set_name: str) -> str:
        """Names what this recipe asks of a cache, without touching data or weights: readers find the manifest by it."""
        asked = {
            "schema_version": SCHEMA_VERSION,
            "data": self.data_of(set_name).model_dump(mode="json"),
            "set": self.set_named(set_name).model_dump(mode="json", exclude={"data", "phrases"}),
            "features": self.features.model_dump(mode="json"),
            "ldm": self.ldm.model_dump(mode="json"),
        }
        return hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:32]

    def digest(self) -> str:
        """SHA-256 of the resolved recipe."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()
