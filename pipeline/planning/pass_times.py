"""How long passes of the frozen networks take here, in steady state, at a recipe's own batch shapes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.spec import CacheSpec
from pipeline.precompute.networks import Networks
from pipeline.precompute.passes import (
    FeatureBatch,
    ViewBatch,
    block_features,
    encode_prompts,
    encode_views,
    member_noise,
    to_device,
)
from pipeline.precompute.preparation import Prepared

_MOST = 15  # timed passes
_Step = Callable[[FrozenLDM], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PassTimes:
    """Seconds of one pass of each network: medians, the first pass not counted."""

    vae_s: float
    text_s: float
    unet_s: float  # up to the last block wanted
    whole_unet_s: float
    scaled: tuple[str, ...]  # those too slow to be timed whole: extrapolated from one sample and two


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What the networks give for one sample."""

    latents: Tensor  # 4,h,w
    context: Tensor  # 77,D
    features: dict[int, Tensor]  # block -> C,h_b,w_b


class PassTimer:
    """Times passes for one sample, the rest of each batch being padding: the work does not depend on what is in it."""

    def __init__(self, networks: Networks, spec: CacheSpec, sample: Prepared) -> None:
        self._networks, self._spec, self._sample = networks, spec, sample
        self._passes = networks.passes()
        features = spec.features
        # Where passes are compiled, each shape is compiled for itself: only the recipe's own is worth that.
        self._only_whole = features.compile
        self._latents = self._run(self._vae(features.image_batch if self._only_whole else 1))[
            "rows"
        ]  # 1,4,h,w
        self._context = self._run(self._text(1))["rows"]  # 1,77,D

    @property
    def outputs(self) -> Outputs:
        """The sample's tensors."""
        features = self._run(self._unet(self._spec.features.feature_batch if self._only_whole else 1))
        return Outputs(
            latents=self._latents[0],
            context=self._context[0],
            features={block: features[str(block)][0] for block in self._spec.features.blocks},
        )

    def time_all(self, *, seconds: float) -> PassTimes:
        """Time each network.

        Args:
            seconds: for all of them, about. Where two whole passes do not fit, the time is extrapolated from passes of
                one and of two samples.
        """
        features = self._spec.features
        todo: dict[str, tuple[Callable[[int], _Step], int]] = {
            "text encoder": (self._text, features.prompt_batch),
            "VAE": (self._vae, features.image_batch),
            "UNet": (self._unet, features.feature_batch),
            "whole UNet": (self._whole_unet, features.feature_batch),
        }
        found: dict[str, float] = {}
        scaled: list[str] = []
        until = time.perf_counter() + seconds
        for place, (name, (make, batch)) in enumerate(todo.items()):
            left = (until - time.perf_counter()) / (len(todo) - place)  # what one leaves is for the others
            found[name], whole = self._time(make, batch, left)
            scaled += [] if whole else [name]
        return PassTimes(
            vae_s=found["VAE"],
            text_s=found["text encoder"],
            unet_s=found["UNet"],
            whole_unet_s=found["whole UNet"],
            scaled=tuple(scaled),
        )

    def _time(self, make: Callable[[int], _Step], batch: int, seconds: float) -> tuple[float, bool]:
        """Seconds of a pass of `batch`, and whether it was one."""
        until = time.perf_counter() + seconds
        if batch > 2 and not self._only_whole:
            one, two = self._warm(make(1)), self._warm(make(2))
            expected = one + (batch - 1) * max(two - one, 0.0)
            if 2 * expected > until - time.perf_counter():
                return expected, False
        step = make(batch)
        times = [self._warm(step)]
        while len(times) < _MOST and time.perf_counter() + times[-1] < until:
            times.append(self._seconds(step))
        return median(times), True

    def _warm(self, step: _Step) -> float:
        """The second of two passes: the first one of a shape prepares what the others find."""
        self._seconds(step)
        return self._seconds(step)

    def _seconds(self, step: _Step) -> float:
        before = self._networks.busy_s
        self._run(step)
        return self._networks.busy_s - before

    def _run(self, step: _Step) -> dict[str, Tensor]:
        return self._passes.submit(step).result()

    def _vae(self, size: int) -> _Step:
        one, seed = self._sample, self._spec.features.seed
        batch = ViewBatch.of([(one.view_key, one.pixels)], size=size, seed=seed, ldm=self._networks.ldm)
        return lambda ldm: {"rows": encode_views(ldm, batch)}

    def _text(self, size: int) -> _Step:
        prompts = partial(encode_prompts, prompts=[self._sample.prompt], size=size)
        return lambda ldm: {"rows": prompts(ldm)}

    def _unet(self, size: int) -> _Step:
        batch, blocks = self._batch(size), self._spec.features.blocks

        def step(ldm: FrozenLDM) -> dict[str, Tensor]:
            features = block_features(ldm, batch, blocks=blocks)
            return {str(block): tensor for block, tensor in features.items()}

        return step

    def _whole_unet(self, size: int) -> _Step:
        batch = self._batch(size)

        def step(ldm: FrozenLDM) -> dict[str, Tensor]:
            z, context = to_device(batch.latents, ldm.device), to_device(batch.context, ldm.device)
            noisy = ldm.add_noise(z, to_device(batch.noise, ldm.device), batch.timesteps)
            return {"rows": ldm.noise_estimate(noisy, batch.timesteps, context)}

        return step

    def _batch(self, size: int) -> FeatureBatch:
        one = self._sample
        noise = member_noise(one.member, seed=self._spec.features.seed, shape=self._latents.shape[1:])
        batch = FeatureBatch.of(
            self._latents, self._context, timesteps=[one.timestep], noise=[noise], size=size
        )
        # Every row counts, so that all of them are copied to the host as in a real pass.
        return FeatureBatch(
            latents=batch.latents,
            context=batch.context,
            noise=batch.noise,
            timesteps=batch.timesteps,
            rows=size,
        )
