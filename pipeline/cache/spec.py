"""The numeric specification of a cache: everything that changes a number, and the key made of it."""

import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ldznet.config import Config
from ldznet.prompts import DEFAULT_TEMPLATE, TEMPLATES
from pipeline.views import ViewConfig

SCHEMA_VERSION = 4
BLOCK_COUNT = 16
TIMESTEP_COUNT = 1000

Dtype = Literal["fp32", "bf16", "fp16", "int8", "fp8"]
QUANTISED: Final[frozenset[Dtype]] = frozenset({"int8", "fp8"})


class TimestepConfig(Config):
    """Timesteps are drawn uniformly from `[low, high)` for each sample and draw; `high = low + 1` fixes one.

    The paper trains on [300, 500) and finds that range best (section 5, figure 4). A `grid` instead looks at one view
    of each sample, with one prompt, at every timestep of a list: draw `d` is the grid's timestep `d`.
    """

    low: int = Field(default=400, ge=0, lt=TIMESTEP_COUNT)
    high: int = Field(default=401, gt=0, le=TIMESTEP_COUNT)
    grid: tuple[Annotated[int, Field(ge=0, lt=TIMESTEP_COUNT)], ...] | None = Field(
        default=None, min_length=1, max_length=256
    )

    @property
    def middle(self) -> int:
        """One timestep for all: the middle of the range, or of the grid's list (of two in the middle the lower)."""
        if self.grid is not None:
            return self.grid[(len(self.grid) - 1) // 2]
        return (self.low + self.high - 1) // 2

    def __str__(self) -> str:
        if self.grid is not None:
            return ", ".join(map(str, self.grid))
        return str(self.low) if self.high == self.low + 1 else f"{self.low} to {self.high - 1}"

    @model_validator(mode="before")
    @classmethod
    def _grid_alone(cls, value: Any) -> Any:
        """A grid names every timestep: bounds beside it would change the key, and no byte."""
        if not isinstance(value, dict) or not value.get("grid"):
            return value
        return {key: each for key, each in value.items() if key not in {"low", "high"}}

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Caches without a grid keep the keys that they had before there were grids."""
        content: dict[str, Any] = serialise(self)
        return content if self.grid is not None else {"low": self.low, "high": self.high}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.high <= self.low:
            raise ValueError(
                f"high ({self.high}) must lie above low ({self.low}): [low, high) holds no timestep"
            )
        if self.grid is not None and list(self.grid) != sorted(set(self.grid)):
            raise ValueError("grid must rise, each timestep once, such as [100, 200, 300]")
        return self


class PolicyConfig(Config):
    """How a sample becomes network inputs: its view, its prompt, its timestep, and how many draws of each."""

    view: ViewConfig = ViewConfig()
    timesteps: TimestepConfig = TimestepConfig()
    prompts: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    draws: int = Field(default=1, ge=1, le=256)

    @model_validator(mode="before")
    @classmethod
    def _draws_of_a_grid(cls, value: Any) -> Any:
        timesteps = value.get("timesteps") if isinstance(value, dict) else None
        grid = timesteps.get("grid") if isinstance(timesteps, dict) else getattr(timesteps, "grid", None)
        if not isinstance(grid, list | tuple) or not grid:
            return value
        if value.get("draws", 1) not in {1, len(grid)}:
            raise ValueError(f"timesteps.grid makes one draw a timestep, {len(grid)}: leave draws out")
        return {**value, "draws": len(grid)}

    @property
    def is_grid(self) -> bool:
        """Whether draws differ in nothing but timestep and noise, so that they share view, latents and prompt."""
        return self.timesteps.grid is not None

    def view_draw(self, draw: int) -> int:
        """The draw that a member's view and prompt are of."""
        return 0 if self.is_grid else draw

    @field_validator("prompts", mode="before")
    @classmethod
    def _named_templates(cls, value: object) -> object:
        return TEMPLATES if value == "published" else value

    @field_validator("prompts")
    @classmethod
    def _templates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one prompt template, such as 'a photo of a {}.', or 'published'")
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"the prompt template {template!r} must hold {{}} exactly once")
        return tuple(sorted(set(value)))  # the draw picks by index: one order, one key


class FeaturesConfig(Config):
    """What the frozen networks compute, and in which arithmetic. Every field changes bytes."""

    blocks: tuple[int, ...] = (6, 7, 8, 9, 10)
    seed: int = Field(default=0, ge=0)
    compute_dtype: Literal["fp32", "bf16"] = "fp32"
    stored_dtype: Dtype = "fp16"  # of block features; latents and context beside int8 and fp8 are fp16
    scale_group: int = Field(default=1, ge=1)  # neighbouring channels that share a scale, for int8 and fp8
    stored_from: Literal["bf16", "fp16"] | None = None  # converted from a cache in this type: rounded twice
    keep_images: bool = False  # store the view's pixels too (RGBNet trains on them; pictures show them)
    image_batch: int = Field(default=4, ge=1)  # views a VAE pass: one fixed shape, the last one padded
    prompt_batch: int = Field(default=16, ge=1)  # prompts a text-encoder pass
    feature_batch: int = Field(default=8, ge=1)  # samples a UNet pass
    threads: int = Field(default=1, ge=1)  # CPU threads a worker: they change rounding
    channels_last: bool = False  # convolutions in NHWC: quicker on GPUs, other rounding
    compile: bool = False  # torch.compile of the UNet walk and the VAE encoder: other rounding

    @field_validator("blocks")
    @classmethod
    def _blocks(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for block in value:
            if not 1 <= block <= BLOCK_COUNT:
                raise ValueError(
                    f"there is no block {block}: Stable Diffusion's blocks are numbered 1 to {BLOCK_COUNT}"
                )
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.stored_dtype not in QUANTISED and self.scale_group != 1:
            raise ValueError(
                f"scale_group is for stored_dtype int8 and fp8, not {self.stored_dtype}: leave it out"
            )
        if self.stored_from == self.stored_dtype:
            raise ValueError(
                f"stored_from is {self.stored_from}, as stored_dtype: nothing to convert, leave it out"
            )
        return self


class CacheSpec(Config):
    """The numeric specification. Two that give the same bytes are equal and have one key.

    `content` is what a shard holds of each sample: everything, or only block features (`columns`), which are joined
    to samples that lie in another shard.
    """

    content: Literal["samples", "columns"] = "samples"
    schema_version: int = SCHEMA_VERSION
    ldm_digest: str  # of the frozen LDM's weights and configuration, not of its name
    features: FeaturesConfig
    policy: PolicyConfig

    def canonical(self) -> str:
        """The canonical form: JSON with sorted keys and no spaces."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def key(self) -> str:
        """SHA-256 over the canonical form, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
