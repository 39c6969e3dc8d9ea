"""From a member to network inputs: decode its image and mask, make its draws. Without any network.

Pure, one image at a time and lazily: what is held is one photo and one view, whatever the size of the shard.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldznet.errors import DataFault, UserError
from ldznet.images import decode_image
from ldznet.prompts import fill
from pipeline.cache.content_digest import MISSING, TOO_LARGE, absent
from pipeline.cache.member import Member, sample_id
from pipeline.cache.receipt import LeftOut
from pipeline.cache.spec import CacheSpec, PolicyConfig
from pipeline.datasets.sample import ReadObject, check_sample
from pipeline.draws import draw_generator
from pipeline.views import View, apply_to_image, apply_to_mask, published_view, shared_view, squash_view

logger = logging.getLogger(__name__)

ViewKey = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A member with its data decoded and its draws made; `view_key` is equal where latents are shared."""

    member: Member
    view: View
    view_key: ViewKey
    pixels: NDArray[np.uint8]  # H,W,3 of the view
    mask: NDArray[np.bool_]  # H,W of the view
    prompt: str
    timestep: int


def sample_facts(member: Member, *, view: View, prompt: str, timestep: int) -> dict[str, object]:
    """What is known of a sample besides its numbers, as it stands in a shard and in a batch."""
    sample = member.sample
    return {
        "phrase": sample.phrase,
        "prompt": prompt,
        "timestep": timestep,
        "view": dataclasses.asdict(view),
        "draw": member.draw,
        "sample_id": member.sample_id,
        "image_digest": member.image_digest,
        "image_id": sample.image_id,
        "label_id": sample.label_id,
        "split": sample.split,
    }


def draw_prompt_and_timestep(policy: PolicyConfig, *, seed: int, member: Member) -> tuple[str, int]:
    """The member's prompt template, filled in, and its timestep: from (seed, sample, draw) alone."""
    draw = policy.view_draw(member.draw)
    generator = draw_generator("prompt and timestep", seed, member.sample_id, draw)
    template = policy.prompts[int(generator.integers(len(policy.prompts)))]
    if policy.timesteps.grid is not None:
        timestep = policy.timesteps.grid[member.draw]
    else:
        timestep = int(generator.integers(policy.timesteps.low, policy.timesteps.high))
    return fill(template, member.sample.phrase.strip()), timestep


def prepare(
    spec: CacheSpec, members: Sequence[Member], read: ReadObject
) -> tuple[list[Prepared], list[LeftOut]]:
    """Members prepared and left out, both in key order, all in memory: for a batch, not for a shard.

    Raises:
        UserError: an image or a mask is not the one that was listed.
    """
    outcomes = [one for group in members_by_image(members) for one in prepare_image(spec, group, read)]
    prepared = [one for one in outcomes if isinstance(one, Prepared)]
    left_out = [one for one in outcomes if isinstance(one, LeftOut)]
    prepared.sort(key=lambda one: one.member.key)
    left_out.sort(key=lambda one: one.key)
    return prepared, left_out


def members_by_image(members: Sequence[Member]) -> list[list[Member]]:
    """Members that share an image, together; within an image those that may share a view are neighbours.

    The order is that of the images' content, so that it does not depend on where they lie.
    """
    ordered = sorted(members, key=lambda one: (one.image_digest, one.sample.image, one.draw, one.key))
    return [
        list(group) for _, group in groupby(ordered, key=lambda one: (one.image_digest, one.sample.image))
    ]


def prepare_image(
    spec: CacheSpec, members: Sequence[Member], read: ReadObject
) -> Iterator[Prepared | LeftOut]:
    """Members of one image. It is decoded once; faulty data is left out with its reason, never raised.

    Raises:
        UserError: an image or a mask is not the one that was listed.
    """
    objects = _ListedObjects(read)
    try:
        image = decode_image(objects.read_image(members[0].sample.image, members[0].image_digest))
    except DataFault as fault:
        yield from (_left_out(member, "failed", str(fault)) for member in members)
        return
    shown: tuple[View, NDArray[np.uint8]] | None = None  # the last view only: neighbours share it
    for member in members:
        try:
            mask = _decode_mask(member, image, objects)
        except DataFault as fault:
            yield _left_out(member, "failed", str(fault))
            continue
        view = _choose_view(spec.policy, mask, seed=spec.features.seed, member=member)
        view_mask = apply_to_mask(mask, view)
        if not view_mask.any():
            yield _left_out(member, "filtered", "nothing of the phrase lies in the view")
            continue
        if shown is None or shown[0] != view:
            shown = view, apply_to_image(image, view)
        yield _prepared(spec, member, view, pixels=shown[1], mask=view_mask)


def _prepared(
    spec: CacheSpec, member: Member, view: View, *, pixels: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> Prepared:
    prompt, timestep = draw_prompt_and_timestep(spec.policy, seed=spec.features.seed, member=member)
    draw = spec.policy.view_draw(member.draw)
    own_latents = (member.sample_id, str(draw)) if spec.policy.view.policy == "published" else ()
    return Prepared(
        member=member,
        view=view,
        view_key=(member.image_digest, repr(view), *own_latents),
        pixels=pixels,
        mask=mask,
        prompt=prompt,
        timestep=timestep,
    )


def _decode_mask(member: Member, image: Image.Image, objects: "_ListedObjects") -> NDArray[np.bool_]:
    """The mask at the photo's own size, from the objects that were listed."""
    check_sample(member.sample)
    fault: DataFault | None = None
    for _ in range(_READS):
        try:
            mask = member.sample.mask.decode(objects.read, width=image.width, height=image.height)
        except DataFault as caught:
            fault = caught
        if not objects.are_those_of(member):
            objects.tell_second_read(f"the mask of {member.sample.label_id}")
            fault = None
            continue
        if fault is not None:
            raise fault
        if not mask.any():
            raise DataFault("the mask is empty")
        return mask
    raise _changed(f"the mask of {member.sample.label_id}")


def _choose_view(policy: PolicyConfig, mask: NDArray[np.bool_], *, seed: int, member: Member) -> View:
    (height, width), size, draw = mask.shape, policy.view.size, policy.view_draw(member.draw)
    match policy.view.policy:
        case "squash":
            return squash_view(width=width, height=height, size=size)
        case "shared":
            return shared_view(
                seed=seed,
                image_id=member.image_digest,
                draw=draw,
                width=width,
                height=height,
                size=size,
            )
        case "published":
            return published_view(seed=seed, sample_id=member.sample_id, draw=draw, mask=mask, size=size)


_READS = 2


class _ListedObjects:
    """Reads an image and its masks, and tells whether they are still those that the members were listed with.

    A shard's identity speaks of their content: other content under it would be a lie that nothing finds later.
    What differs is read once more, for a bit may have flipped on the way; only what differs twice has changed.
    """

    def __init__(self, read: ReadObject) -> None:
        self._read = read
        self._digests: dict[str, str] = {}

    def read(self, key: str) -> bytes:
        try:
            data = self._read(key)
        except KeyError as error:
            self._digests[key] = absent(MISSING, key)
            raise DataFault(f"{key} is missing") from error
        except DataFault:
            self._digests[key] = absent(TOO_LARGE, key)
            raise
        self._digests[key] = hashlib.sha256(data).hexdigest()
        return data

    def read_image(self, key: str, listed: str) -> bytes:
        """The image's bytes. `DataFault` where it was missing from the start, `UserError` where it has changed."""
        for _ in range(_READS):
            fault: DataFault | None = None
            try:
                data = self.read(key)
            except DataFault as caught:
                fault = caught
            if self._digests[key] != listed:
                self.tell_second_read(key)
                continue
            if fault is not None:
                raise fault
            return data
        raise _changed(key)

    def are_those_of(self, member: Member) -> bool:
        return sample_id(member.sample, self._digests.__getitem__) == member.sample_id

    def tell_second_read(self, what: str) -> None:
        logger.warning("%s was not read as it was listed: reading it once more", what)


def _changed(what: str) -> UserError:
    return UserError(
        f"{what} has changed since the data set was listed: run again when nothing writes to it; if it was restored "
        "with its old time, also remove ldznet/digests.sqlite from ~/.cache (or XDG_CACHE_HOME) where the job ran"
    )


def _left_out(member: Member, why: Literal["failed", "filtered"], reason: str) -> LeftOut:
    image, phrase, told = map(_writable, (member.sample.image, member.sample.phrase, reason))
    return LeftOut(key=member.key, image=image, phrase=phrase, why=why, reason=told)


def _writable(text: str) -> str:
    """As UTF-8 can hold it: JSON brings lone surrogates in, but does not take them out."""
    return text.encode(errors="backslashreplace").decode()
