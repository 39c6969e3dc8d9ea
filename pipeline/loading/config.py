"""How samples come from the cache."""

from pydantic import Field

from ldznet.config import Config


class LoaderConfig(Config):
    """How samples come from the cache."""

    window: int = Field(default=8, ge=1)  # neighbours fetched by one ranged GET
    concurrency: int = Field(default=8, ge=1)  # ranged GETs in flight a rank
    batches_ahead: int = Field(default=4, ge=1)
