"""Precompute of ONE shard: decode, encode, features. A pure function of the specification and the members.

Image latents are computed once a view, text contexts once a distinct prompt, block features once a sample. Memory holds
a few batches whatever the size of the shard: photos are decoded ahead through a bounded queue, and what later passes
need (latents, contexts, masks, kept pictures) waits in a scratch file. Per member only its record stays in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.entry import Entry, encode_png
from pipeline.cache.member import Member
from pipeline.cache.receipt import LeftOut
from pipeline.cache.spec import CacheSpec
from pipeline.datasets.sample import ReadObject
from pipeline.precompute.decoding import DecodeAhead
from pipeline.precompute.networks import Networks, Passes, Pending
from pipeline.precompute.passes import (
    FeatureBatch,
    ViewBatch,
    block_features,
    encode_prompts,
    encode_views,
    member_noise,
)
from pipeline.precompute.preparation import Prepared, ViewKey, members_by_image, prepare_image, sample_facts
from pipeline.precompute.scratch import Scratch, Stretch
from pipeline.precompute.watch import ShardWatch
from pipeline.views import View

AHEAD: Final = 16  # decoded members that wait for the networks
_Key = TypeVar("_Key")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputedSample:
    """An entry without its picture, and the picture as it goes into the shard, where the specification keeps it."""

    entry: Entry
    image_png: bytes | None


class ShardComputation:
    """One shard on its way: first `decode` its members, then take its `samples`."""

    def __init__(
        self,
        spec: CacheSpec,
        *,
        networks: Networks,
        scratch: Scratch,
        watch: ShardWatch | None = None,
        decoders: int = 2,
    ) -> None:
        """Nothing is computed yet.

        Args:
            spec: the numeric specification.
            networks: the frozen LDM, which other shards may use meanwhile: those that began earlier go first.
            scratch: an empty scratch file.
            watch: told how far it is.
            decoders: threads that decode.
        """
        self._spec, self._passes, self._scratch = spec, networks.passes(), scratch
        self._watch = watch or ShardWatch()
        self._decoders = decoders
        self._keeps_pictures = spec.features.keep_images and spec.content == "samples"
        self._records: list[_Record] = []
        self._pictures: dict[ViewKey, Stretch] = {}
        self._latents: _SpilledPasses[ViewKey] = _SpilledPasses(self._passes, scratch)
        self._contexts: _SpilledPasses[str] = _SpilledPasses(self._passes, scratch)

    def decode(self, members: Sequence[Member], read: ReadObject) -> list[LeftOut]:
        """Decode the members and encode their views; those left out, in key order.

        Raises:
            UserError: an image or a mask is not the one that was listed.
        """
        left_out: list[LeftOut] = []
        views: dict[ViewKey, NDArray[np.uint8]] = {}  # to be encoded next
        make = partial(prepare_image, self._spec, read=read)
        groups = members_by_image(members)
        with DecodeAhead(groups, make, threads=self._decoders, ahead=AHEAD) as outcomes:
            for outcome in outcomes:
                self._watch.decoded()
                if isinstance(outcome, LeftOut):
                    left_out.append(outcome)
                    continue
                self._records.append(self._record(outcome))
                if outcome.view_key not in views and outcome.view_key not in self._latents:
                    self._keep_picture(outcome)
                    views[outcome.view_key] = outcome.pixels
                if len(views) == self._spec.features.image_batch:
                    self._encode_views(views)
        self._encode_views(views)
        self._latents.settle()
        self._records.sort(key=lambda record: record.member.key)
        return sorted(left_out, key=lambda one: one.key)

    def samples(self) -> Iterator[ComputedSample]:
        """The samples in key order. While the caller packs those of one batch, the next is computed."""
        self._encode_prompts()
        size, records = self._spec.features.feature_batch, self._records
        ahead: _FeaturePass | None = None
        for start in range(0, len(records), size):
            behind, ahead = ahead, self._begin(records[start : start + size])
            if behind is not None:
                yield from self._computed(behind)
        if ahead is not None:
            yield from self._computed(ahead)

    def _record(self, one: Prepared) -> "_Record":
        bits = np.packbits(one.mask, axis=None)
        return _Record(
            member=one.member,
            view=one.view,
            view_key=one.view_key,
            prompt=one.prompt,
            timestep=one.timestep,
            mask=self._scratch.put(bits.data),
            mask_shape=one.mask.shape,
        )

    def _keep_picture(self, one: Prepared) -> None:
        if self._keeps_pictures:
            self._pictures[one.view_key] = self._scratch.put(encode_png(one.pixels))

    def _encode_views(self, views: dict[ViewKey, NDArray[np.uint8]]) -> None:
        if not views:
            return
        features, pixels = self._spec.features, list(views.items())
        views.clear()
        batch = ViewBatch.of(pixels, size=features.image_batch, seed=features.seed, ldm=self._passes.ldm)
        self._latents.submit([key for key, _ in pixels], partial(encode_views, batch=batch))

    def _encode_prompts(self) -> None:
        prompts, size = sorted({record.prompt for record in self._records}), self._spec.features.prompt_batch
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            self._contexts.submit(part, partial(encode_prompts, prompts=part, size=size))
        self._contexts.settle()

    def _begin(self, records: "Sequence[_Record]") -> "_FeaturePass":
        features = self._spec.features
        latents = self._latents.get([record.view_key for record in records])
        context = self._contexts.get([record.prompt for record in records])
        noise = [
            member_noise(record.member, seed=features.seed, shape=latents.shape[1:]) for record in records
        ]
        timesteps = [record.timestep for record in records]
        batch = FeatureBatch.of(
            latents, context, timesteps=timesteps, noise=noise, size=features.feature_batch
        )
        pending = self._passes.submit(partial(block_features, batch=batch, blocks=features.blocks))
        return _FeaturePass(records=records, latents=latents, context=context, pending=pending)

    def _computed(self, done: "_FeaturePass") -> Iterator[ComputedSample]:
        features = done.pending.result()
        for row, record in enumerate(done.records):
            entry = Entry(
                key=record.member.key,
                latents=done.latents[row],
                context=done.context[row],
                features={block: tensor[row] for block, tensor in features.items()},
                mask=self._mask(record),
                facts=record.facts,
            )
            picture = self._pictures.get(record.view_key)
            yield ComputedSample(
                entry=entry, image_png=None if picture is None else self._scratch.get(picture)
            )

    def _mask(self, record: "_Record") -> NDArray[np.bool_]:
        bits = np.frombuffer(self._scratch.get(record.mask), np.uint8)
        height, width = record.mask_shape
        return np.unpackbits(bits, count=height * width).reshape(height, width).astype(np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What memory holds of a member while its data lies in the scratch file."""

    member: Member
    view: View
    view_key: ViewKey
    prompt: str
    timestep: int
    mask: Stretch  # of the mask's packed bits
    mask_shape: tuple[int, ...]

    @property
    def facts(self) -> dict[str, object]:
        return sample_facts(self.member, view=self.view, prompt=self.prompt, timestep=self.timestep)


@dataclass(frozen=True, kw_only=True, slots=True)
class _FeaturePass:
    """A UNet pass on its way, and what its samples have besides: `B` rows each."""

    records: Sequence[_Record]
    latents: Tensor  # B,4,h,w
    context: Tensor  # B,77,D
    pending: Pending[int]


class _SpilledPasses(Generic[_Key]):
    """Rows that passes gave, by key, in the scratch file; one pass is on its way while the next is made ready."""

    def __init__(self, passes: Passes, scratch: Scratch) -> None:
        self._passes, self._scratch = passes, scratch
        self._places: dict[_Key, Stretch | None] = {}  # None while on its way
        self._flying: tuple[Sequence[_Key], Pending[str]] | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32

    def __contains__(self, key: _Key) -> bool:
        return key in self._places

    def submit(self, keys: Sequence[_Key], step: Callable[[FrozenLDM], Tensor]) -> None:
        """A pass that gives one row a key."""
        self._places.update(dict.fromkeys(keys))
        pending = self._passes.submit(lambda ldm: {"rows": step(ldm)})
        self.settle()
        self._flying = keys, pending

    def settle(self) -> None:
        """Wait for the pass on its way and put its rows into the file."""
        if self._flying is None:
            return
        (keys, pending), self._flying = self._flying, None
        rows = pending.result()["rows"]
        self._shape, self._dtype = tuple(rows.shape[1:]), rows.dtype
        for key, row in zip(keys, rows, strict=True):
            self._places[key] = self._scratch.put_tensor(row)

    def get(self, keys: Sequence[_Key]) -> Tensor:
        """Rows again, stacked."""
        places = [place for key in keys if (place := self._places[key]) is not None]
        assert len(places) == len(keys), "rows still on their way"
        return self._scratch.get_tensors(
            places, shape=self._shape, dtype=self._dtype, pinned=self._passes.on_gpu
        )
