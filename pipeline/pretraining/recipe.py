"""A pretraining recipe: the typed, frozen configuration of a small latent diffusion model's training."""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldznet.config import Config
from ldznet.pretraining.networks import LdmSizes
from ldznet.pretraining.objectives import AutoencoderLoss, DiffusionLoss
from pipeline.scenes.config import ScenesConfig
from pipeline.tracking.config import TrackingConfig

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Stage = Literal["autoencoder", "latents", "diffusion"]

# What may change between a checkpoint and the run that goes on from it.
_FREE_TO_CHANGE = frozenset(
    {"steps", "validate_every", "checkpoint_every", "keep_checkpoints", "log_every", "compiled"}
)


class StageTraining(Config):
    """How one stage trains: AdamW, warm-up, schedule, EMA."""

    steps: Positive
    batch_size: Positive  # over all ranks
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Natural = 100
    schedule: Literal["constant", "cosine"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # after a start of (1+n)/(10+n)
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over fp32 weights
    channels_last: bool = True
    compiled: bool = False  # torch.compile
    validate_every: Positive = 500
    checkpoint_every: Positive = 250
    keep_checkpoints: Positive = 2
    log_every: Positive = 20

    def identity(self) -> str:
        """Digest of what must not change between a checkpoint and the run that goes on from it."""
        return _digest(self.model_dump(mode="json", exclude=set(_FREE_TO_CHANGE)))


class AutoencoderStage(StageTraining):
    """The first stage, on scenes composed on the fly: every image is new."""

    crop: Annotated[int, Field(ge=32, multiple_of=8)] | None = None  # pixels a side; None: whole images
    loss: AutoencoderLoss = AutoencoderLoss()


class LatentsConfig(Config):
    """The scenes that the diffusion model trains on, encoded once."""

    scenes: Positive = 65536
    captions: Annotated[int, Field(ge=1, le=8)] = 4  # a scene: its caption, and prompts made of its phrases
    batch_size: Positive = 64


class DiffusionStage(StageTraining):
    """UNet and text encoder together, on cached latents."""

    loss: DiffusionLoss = DiffusionLoss()
    full_captions: Annotated[float, Field(ge=0, le=1)] = (
        0.6  # share; the others are prompts of single phrases
    )


class PretrainRecipe(Config):
    """Everything that a pretrained latent diffusion model is made from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str = "runs/pretrain/{name}"
    seed: Natural = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Positive = 1  # ranks: one a GPU, or processes on the CPU
    threads: Positive = 1  # CPU threads a rank
    data_workers: Natural = 0  # processes a rank that compose scenes; 0: in the rank itself
    max_failures: Natural = 3  # restarts after lost ranks before giving up
    scenes: ScenesConfig = ScenesConfig()
    networks: LdmSizes = LdmSizes()
    autoencoder: AutoencoderStage
    latents: LatentsConfig = LatentsConfig()
    diffusion: DiffusionStage
    tokenizer_scenes: Positive = 6000  # whose captions the vocabulary is learned from
    validation_scenes: Positive = 256
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _sides(self) -> Self:
        if self.scenes.size % 64:
            raise ValueError(f"scenes.size={self.scenes.size}: the UNet takes multiples of 64 pixels")
        if self.autoencoder.crop is not None and self.autoencoder.crop > self.scenes.size:
            raise ValueError(
                f"autoencoder.crop={self.autoencoder.crop} is more than scenes.size={self.scenes.size}"
            )
        for stage in ("autoencoder", "diffusion"):
            size = getattr(self, stage).batch_size
            if size % self.workers:
                raise ValueError(f"{stage}.batch_size={size} does not divide among workers={self.workers}")
        return self

    @property
    def output_folder(self) -> str:
        """`output` with the recipe's name filled in."""
        return self.output.replace("{name}", self.name)

    @property
    def latent_side(self) -> int:
        """Positions along one side of `z`."""
        return self.scenes.size // 8

    def data_identity(self) -> str:
        """Digest of what scenes are made from: their configuration, clip-art and photos."""
        from pipeline.scenes.writing import describe_scenes

        return _digest([self.seed, describe_scenes(self.scenes)["digest"]])

    def stage_identity(self, stage: Stage) -> str:
        """Digest of all that a stage's result depends on but its length."""
        parts: list[object] = [
            self.data_identity(),
            self.tokenizer_scenes,  # the tokenizer is made before the first stage
            self.networks.model_dump(mode="json"),
            self.autoencoder.identity(),
        ]
        if stage != "autoencoder":
            parts += [
                self.autoencoder.steps,
                self.latents.model_dump(mode="json", exclude={"scenes", "batch_size"}),
            ]
        if stage == "diffusion":
            parts += [self.diffusion.identity(), self.latents.scenes]
        return _digest(parts)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
