"""What `ldznet plan` needs to know besides the recipe: prices, and how a training will run."""

from typing import Annotated

from pydantic import Field

from ldznet.config import Config

Price = Annotated[float, Field(ge=0)] | None


class PriceConfig(Config):
    """What the user pays. Where a price is not given, no cost is claimed."""

    currency: str = "USD"  # as it is printed
    storage_gb_month: Price = None  # 10^9 bytes for a month
    gpu_hour: Price = None  # a worker or rank on a GPU, all included
    cpu_hour: Price = None  # a worker or rank without one
    put_1000: Price = None  # requests that write
    get_1000: Price = None  # requests that read
    egress_gb: Price = None  # 10^9 bytes read from the store


class PlanConfig(Config):
    """What `ldznet plan` reckons with."""

    prices: PriceConfig = PriceConfig()
    workers: tuple[Annotated[int, Field(ge=1)], ...] = (1, 8, 64)  # of precompute, beside cache.workers
    months: float = Field(default=1, gt=0)  # how long the cache is kept
    epochs: Annotated[float, Field(gt=0)] | None = None  # over all trainings; none: the recipe's own training
    samples_per_second: Annotated[float, Field(gt=0)] | None = None  # a rank trains; none: timed, where cheap
    # 10^6 bytes a second that a rank gets from the store; none: reading is timed on a local folder
    read_megabytes_per_second: Annotated[float, Field(gt=0)] | None = None
