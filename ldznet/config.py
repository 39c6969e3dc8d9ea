"""The base of every configuration object: typed, frozen, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen configuration object. Unknown keys are errors; a changed copy comes from `model_copy(update=…)`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
