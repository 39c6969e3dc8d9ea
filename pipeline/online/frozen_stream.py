"""A stream of prepared samples through the frozen networks, in passes of the cache's own batch shapes, all full.

Passes do not keep to the borders of training batches: a text-encoder pass of 16 prompts serves four batches of 4. As
rounding follows the shape of a pass and not a sample's neighbours, a sample's numbers are those of the cache: equal to
the bit on one CPU thread (see `pipeline.precompute.passes`).
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.member import Member
from pipeline.cache.spec import FeaturesConfig
from pipeline.precompute.passes import (
    FeatureBatch,
    ViewBatch,
    block_features,
    encode_prompts,
    encode_views,
    member_noise,
)
from pipeline.precompute.preparation import Prepared, ViewKey

_Key = TypeVar("_Key")
_Input = TypeVar("_Input")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenRow:
    """What the frozen networks made of one sample, on their device."""

    latents: Tensor  # 4,h,w
    context: Tensor  # 77,D
    features: dict[int, Tensor]  # block -> C,h_b,w_b


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """What memory holds of a sample until its features are computed."""

    member: Member
    view_key: ViewKey
    prompt: str
    timestep: int


class FrozenStream:
    """Latents once a view and contexts once a prompt of a batch, at least; features once a sample.

    A pass waits until it is full, but for no more samples than twice its largest size: so memory is bounded.
    """

    def __init__(self, ldm: FrozenLDM, *, features: FeaturesConfig, blocks: Sequence[int]) -> None:
        """Nothing is under way.

        Args:
            ldm: the frozen LDM; without its VAE, latents are zeros.
            features: seed and batch shapes.
            blocks: whose features are wanted; none: the UNet is not run.
        """
        self._ldm, self._features, self._blocks = ldm, features, tuple(blocks)
        self._latents: _OncePasses[ViewKey, NDArray[np.uint8]] = _OncePasses(
            features.image_batch, self._encode_views
        )
        self._contexts: _OncePasses[str, str] = _OncePasses(features.prompt_batch, self._encode_prompts)
        self._most = 2 * max(features.image_batch, features.prompt_batch, features.feature_batch)
        self._waiting: deque[_Waiting] = deque()
        self._ready: deque[FrozenRow] = deque()

    def push(self, batch: Sequence[Prepared]) -> None:
        """Take a batch's samples up; passes that are full now are run."""
        for one in batch:  # all first: what is computed early in a batch is kept for its last sample
            self._latents.expect(one.view_key)
            self._contexts.expect(one.prompt)
        for one in batch:
            self._latents.add(one.view_key, one.pixels)
            self._contexts.add(one.prompt, one.prompt)
            self._waiting.append(
                _Waiting(member=one.member, view_key=one.view_key, prompt=one.prompt, timestep=one.timestep)
            )
            self._run_full_passes()
            if len(self._waiting) >= self._most:  # few distinct prompts or views: they would wait for long
                self._latents.flush()
                self._contexts.flush()
                self._run_full_passes()

    def flush(self) -> None:
        """No sample follows: run what is left, padded."""
        self._latents.flush()
        self._contexts.flush()
        while self._waiting:
            self._compute(min(self._features.feature_batch, len(self._waiting)))

    @property
    def ready(self) -> int:
        """Samples that are done and not taken."""
        return len(self._ready)

    def take(self, count: int) -> list[FrozenRow]:
        """The next samples that are done, in the order in which they were pushed."""
        return [self._ready.popleft() for _ in range(count)]

    def _run_full_passes(self) -> None:
        size = self._features.feature_batch if self._blocks else 1
        while len(self._waiting) >= size and all(self._is_encoded(self._waiting[row]) for row in range(size)):
            self._compute(size)

    def _is_encoded(self, one: _Waiting) -> bool:
        return one.view_key in self._latents and one.prompt in self._contexts

    def _compute(self, count: int) -> None:
        rows = [self._waiting.popleft() for _ in range(count)]
        latents = torch.stack([self._latents.take(row.view_key) for row in rows])  # B,4,h,w
        context = torch.stack([self._contexts.take(row.prompt) for row in rows])  # B,77,D
        features: dict[int, Tensor] = {}
        if self._blocks:
            seed, shape = self._features.seed, latents.shape[1:]
            batch = FeatureBatch.of(
                latents,
                context,
                timesteps=[row.timestep for row in rows],
                noise=[member_noise(row.member, seed=seed, shape=shape) for row in rows],
                size=self._features.feature_batch,
            )
            with _rounding_of_the_cache(self._ldm.device):
                features = block_features(self._ldm, batch, blocks=self._blocks)
        for row in range(count):
            own = {block: tensor[row] for block, tensor in features.items()}
            self._ready.append(FrozenRow(latents=latents[row], context=context[row], features=own))

    def _encode_views(self, views: list[tuple[ViewKey, NDArray[np.uint8]]]) -> Tensor:
        size, ldm = self._features.image_batch, self._ldm
        if ldm.vae is None:
            height, width = (side // ldm.latent_stride for side in views[0][1].shape[:2])
            return torch.zeros(len(views), ldm.latent_channels, height, width, device=ldm.device)
        with _rounding_of_the_cache(ldm.device):
            return encode_views(ldm, ViewBatch.of(views, size=size, seed=self._features.seed, ldm=ldm))

    def _encode_prompts(self, prompts: list[tuple[str, str]]) -> Tensor:
        with _rounding_of_the_cache(self._ldm.device):
            texts = [prompt for prompt, _ in prompts]
            return encode_prompts(self._ldm, texts, size=self._features.prompt_batch)


class _OncePasses(Generic[_Key, _Input]):
    """Passes that give one row a key; a key that several samples under way share is computed once."""

    def __init__(self, size: int, run: Callable[[list[tuple[_Key, _Input]]], Tensor]) -> None:
        self._size, self._run = size, run
        self._users: Counter[_Key] = Counter()
        self._queue: dict[_Key, _Input] = {}
        self._rows: dict[_Key, Tensor] = {}

    def __contains__(self, key: _Key) -> bool:
        return key in self._rows

    def expect(self, key: _Key) -> None:
        """One more sample is going to take this key's row."""
        self._users[key] += 1

    def add(self, key: _Key, value: _Input) -> None:
        if key not in self._rows and key not in self._queue:
            self._queue[key] = value
        if len(self._queue) == self._size:
            self.flush()

    def flush(self) -> None:
        if self._queue:
            keys = list(self._queue)
            rows = self._run(list(self._queue.items()))
            self._queue.clear()
            self._rows.update(zip(keys, rows, strict=True))

    def take(self, key: _Key) -> Tensor:
        """A key's row, for one of those that expect it; the last one takes it away."""
        self._users[key] -= 1
        if self._users[key]:
            return self._rows[key]
        del self._users[key]
        return self._rows.pop(key)


@contextmanager
def _rounding_of_the_cache(device: torch.device) -> Iterator[None]:
    """On a GPU: fp32 is fp32 and kernels are not chosen by measuring, as in precompute; training stays as it was."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False, False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
