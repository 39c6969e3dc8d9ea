"""How many workers a job takes: a number, or a range within which it follows what the cluster offers."""

from typing import Annotated, Any, Final, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ldznet.config import Config

_RANGE: Final = "WorkersConfig"


class WorkersConfig(Config):
    """A number of workers that follows the cluster."""

    min: Annotated[int, Field(ge=1)] = Field(
        default=1, description="fewer are not enough to begin, or to go on for long"
    )
    max: Annotated[int, Field(ge=1)] = Field(description="the cluster is asked for so many")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


def _kind(value: Any) -> str:
    return _RANGE if isinstance(value, dict | WorkersConfig) else "int"


WorkerCount = Annotated[
    Annotated[int, Field(ge=1), Tag("int")] | Annotated[WorkersConfig, Tag(_RANGE)], Discriminator(_kind)
]


def most_workers(count: int | WorkersConfig) -> int:
    """The upper bound."""
    return count if isinstance(count, int) else count.max
