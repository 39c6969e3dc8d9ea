"""Over what a noise map is averaged."""

from pydantic import Field

from ldznet.config import Config


class NoiseMapConfig(Config):
    """Timesteps and seeds of a noise map. The paper does not say which it took for its figure 1."""

    timesteps: tuple[int, ...] = Field(default=(300, 400, 500), min_length=1)  # 0..999
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3), min_length=1)  # of the noise
