"""Precompute of ONE shard: decode, encode, pack. A pure function of the specification and the members.

Image latents are computed once a view, text contexts once a distinct prompt, block features once a sample. Every
pass has the batch shape that the specification fixes, the last batch padded: rounding depends on the shape of a
batch, not on a sample's neighbours. On one CPU thread it does not depend on a sample's place in the batch either; on
several it may (in the last bit), so that a sample's bytes are then fixed within its shard, not across shards.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldznet.errors import DataFault, UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.images import decode_image, to_tensor
from ldznet.prompts import fill
from pipeline.cache.content_digest import MISSING
from pipeline.cache.entry import Entry
from pipeline.cache.member import Member, sample_id
from pipeline.cache.receipt import LeftOut
from pipeline.cache.spec import CacheSpec, PolicyConfig
from pipeline.datasets.sample import ReadObject, check_sample
from pipeline.draws import draw_generator
from pipeline.views import View, apply_to_image, apply_to_mask, published_view, shared_view, squash_view

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A member with its data decoded and its draws made; `view_key` is equal where latents are shared."""

    member: Member
    view: View
    view_key: tuple[str, ...]
    pixels: NDArray[np.uint8]  # H,W,3 of the view
    mask: NDArray[np.bool_]  # H,W of the view
    prompt: str
    timestep: int


def draw_prompt_and_timestep(policy: PolicyConfig, *, seed: int, member: Member) -> tuple[str, int]:
    """The member's prompt template, filled in, and its timestep: from (seed, sample, draw) alone."""
    generator = draw_generator("prompt and timestep", seed, member.sample_id, member.draw)
    template = policy.prompts[int(generator.integers(len(policy.prompts)))]
    timestep = int(generator.integers(policy.timesteps.low, policy.timesteps.high))
    return fill(template, member.sample.phrase.strip()), timestep


def prepare(
    spec: CacheSpec, members: Sequence[Member], read: ReadObject
) -> tuple[list[Prepared], list[LeftOut]]:
    """Decode each image once and make every draw. Faulty data is left out with its reason, never raised.

    Raises:
        UserError: an image or a mask is not the one that was listed.
    """
    prepared: list[Prepared] = []
    left_out: list[LeftOut] = []
    by_image = sorted(members, key=lambda member: (member.sample.image, member.key))
    for image_key, group in groupby(by_image, key=lambda member: member.sample.image):
        image_members = list(group)
        objects = _ListedObjects(read)
        try:
            image = decode_image(objects.read_image(image_key, image_members[0].image_digest))
        except DataFault as fault:
            left_out.extend(_left_out(member, "failed", str(fault)) for member in image_members)
            continue
        view_pixels: dict[View, NDArray[np.uint8]] = {}
        for member in image_members:
            try:
                one = _prepare_member(spec, member, image, view_pixels, objects)
            except DataFault as fault:
                left_out.append(_left_out(member, "failed", str(fault)))
                continue
            if one is None:
                left_out.append(_left_out(member, "filtered", "nothing of the phrase lies in the view"))
            else:
                prepared.append(one)
    prepared.sort(key=lambda one: one.member.key)
    left_out.sort(key=lambda one: one.key)
    return prepared, left_out


def _prepare_member(
    spec: CacheSpec,
    member: Member,
    image: Image.Image,
    view_pixels: dict[View, NDArray[np.uint8]],
    objects: "_ListedObjects",
) -> Prepared | None:
    check_sample(member.sample)
    try:
        mask = member.sample.mask.decode(objects.read, width=image.width, height=image.height)
    finally:
        objects.check(member)
    if not mask.any():
        raise DataFault("the mask is empty")
    policy, seed = spec.policy, spec.features.seed
    view = _choose_view(policy, mask, seed=seed, member=member)
    view_mask = apply_to_mask(mask, view)
    if not view_mask.any():
        return None
    if view not in view_pixels:
        view_pixels[view] = apply_to_image(image, view)
    prompt, timestep = draw_prompt_and_timestep(policy, seed=seed, member=member)
    own_latents = (member.sample_id, str(member.draw)) if policy.view.policy == "published" else ()
    return Prepared(
        member=member,
        view=view,
        view_key=(member.image_digest, repr(view), *own_latents),
        pixels=view_pixels[view],
        mask=view_mask,
        prompt=prompt,
        timestep=timestep,
    )


def _choose_view(policy: PolicyConfig, mask: NDArray[np.bool_], *, seed: int, member: Member) -> View:
    (height, width), size = mask.shape, policy.view.size
    match policy.view.policy:
        case "squash":
            return squash_view(width=width, height=height, size=size)
        case "shared":
            return shared_view(
                seed=seed,
                image_id=member.image_digest,
                draw=member.draw,
                width=width,
                height=height,
                size=size,
            )
        case "published":
            return published_view(
                seed=seed, sample_id=member.sample_id, draw=member.draw, mask=mask, size=size
            )


def compute_entries(spec: CacheSpec, prepared: Sequence[Prepared], ldm: FrozenLDM) -> Iterator[Entry]:
    """The entries of prepared members, in their order, one UNet batch in memory at a time."""
    features, seed = spec.features, spec.features.seed
    latents = _encode_views(prepared, ldm, batch=features.image_batch, seed=seed)
    contexts = _encode_prompts(prepared, ldm, batch=features.prompt_batch)
    for start in range(0, len(prepared), features.feature_batch):
        part = prepared[start : start + features.feature_batch]
        padded = _padded(part, features.feature_batch)
        z = torch.stack([latents[one.view_key] for one in padded])  # B,4,h,w
        context = torch.stack([contexts[one.prompt] for one in padded])  # B,77,D
        timesteps = torch.tensor([one.timestep for one in padded], device=z.device)  # B
        noise = [
            _noise("noise", seed, one.member.sample_id, one.member.draw, shape=z.shape[1:]) for one in padded
        ]
        noisy = ldm.add_noise(z, torch.stack(noise).to(z), timesteps)
        blocks = ldm.block_features(noisy, timesteps, context, blocks=features.blocks)
        on_host = {block: tensor.to("cpu") for block, tensor in blocks.items()}
        z_host, context_host = z.to("cpu"), context.to("cpu")
        for row, one in enumerate(part):
            yield Entry(
                key=one.member.key,
                latents=z_host[row],
                context=context_host[row],
                features={block: tensor[row] for block, tensor in on_host.items()},
                mask=one.mask,
                facts=_facts(one),
                image=one.pixels if features.keep_images else None,
            )


def _encode_views(
    prepared: Sequence[Prepared], ldm: FrozenLDM, *, batch: int, seed: int
) -> dict[tuple[str, ...], Tensor]:
    distinct = list({one.view_key: one for one in prepared}.values())
    latents: dict[tuple[str, ...], Tensor] = {}
    for start in range(0, len(distinct), batch):
        part = distinct[start : start + batch]
        padded = _padded(part, batch)
        images = torch.stack([to_tensor(one.pixels) for one in padded])  # B,3,H,W
        height, width = images.shape[-2] // ldm.latent_stride, images.shape[-1] // ldm.latent_stride
        shape = (ldm.latent_channels, height, width)
        noise = torch.stack([_noise("posterior", seed, *one.view_key, shape=shape) for one in padded])
        z = ldm.encode_images(images, noise=noise)
        latents.update((one.view_key, z[row]) for row, one in enumerate(part))
    return latents


def _encode_prompts(prepared: Sequence[Prepared], ldm: FrozenLDM, *, batch: int) -> dict[str, Tensor]:
    distinct = sorted({one.prompt for one in prepared})
    contexts: dict[str, Tensor] = {}
    for start in range(0, len(distinct), batch):
        part = distinct[start : start + batch]
        encoded = ldm.encode_prompts(list(_padded(part, batch)))
        contexts.update((prompt, encoded[row]) for row, prompt in enumerate(part))
    return contexts


def _noise(purpose: str, *parts: str | int, shape: Sequence[int]) -> Tensor:
    generator = draw_generator(purpose, *parts)
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def _padded(part: Sequence[_T], size: int) -> list[_T]:
    return [*part, *[part[-1]] * (size - len(part))]


def _facts(one: Prepared) -> dict[str, object]:
    sample = one.member.sample
    return {
        "phrase": sample.phrase,
        "prompt": one.prompt,
        "timestep": one.timestep,
        "view": dataclasses.asdict(one.view),
        "draw": one.member.draw,
        "sample_id": one.member.sample_id,
        "image_digest": one.member.image_digest,
        "image_id": sample.image_id,
        "label_id": sample.label_id,
        "split": sample.split,
    }


class _ListedObjects:
    """Reads an image and its masks, and tells whether they are still those that the members were listed with.

    A shard's identity speaks of their content: other content under it would be a lie that nothing finds later.
    """

    def __init__(self, read: ReadObject) -> None:
        self._read = read
        self._digests: dict[str, str] = {}

    def read(self, key: str) -> bytes:
        try:
            data = self._read(key)
        except KeyError as error:
            self._digests[key] = MISSING
            raise DataFault(f"{key} is missing") from error
        self._digests[key] = hashlib.sha256(data).hexdigest()
        return data

    def read_image(self, key: str, listed: str) -> bytes:
        try:
            return self.read(key)
        finally:
            if self._digests.get(key, listed) != listed:
                raise _changed(key)

    def check(self, member: Member) -> None:
        if sample_id(member.sample, self._digests.__getitem__) != member.sample_id:
            raise _changed(f"the mask of {member.sample.label_id}")


def _changed(what: str) -> UserError:
    return UserError(f"{what} has changed since the data set was listed: run again when nothing writes to it")


def _left_out(member: Member, why: str, reason: str) -> LeftOut:
    return LeftOut.model_validate(
        {
            "key": member.key,
            "image": member.sample.image,
            "phrase": member.sample.phrase,
            "why": why,
            "reason": reason,
        }
    )
