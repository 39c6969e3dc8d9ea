"""The samples behind a cached set: photos and masks at their own size, found by the ids that the cache keeps."""

import hashlib
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldznet.errors import DataFault, UserError
from ldznet.images import decode_image
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.datasets.sample import Dataset, Sample
from pipeline.views import View, apply_to_mask

_PHOTOS_KEPT = 32  # decoded: an image's phrases lie in one shard


class OriginalSamples:
    """Originals of one set's samples. The data set is opened when the first is asked for."""

    def __init__(self, *, data: DataConfig, split: str) -> None:
        self._data = data
        self._split = split
        self._digests: dict[str, str | None] = {}  # of photos, by key
        self._photo_at = lru_cache(maxsize=_PHOTOS_KEPT)(self._load_photo)

    def photo(self, facts: Mapping[str, Any]) -> Image.Image:
        """The photo that a cached sample is about, upright and RGB.

        Raises:
            UserError: the data set is away, or the photo is not the one that the cache was computed from.
        """
        return self._photo_at(self._samples_of(facts)[0].image, str(facts["image_digest"]))

    def mask(self, facts: Mapping[str, Any], cached: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask of a cached sample at the photo's own size, `H,W`.

        Args:
            facts: of the cached sample.
            cached: its mask in the cache, `S,S`: the mask's view must be equal to it.

        Raises:
            UserError: the data set is away or has changed.
        """
        view = View(**facts["view"])
        assert (view.left, view.top) == (0, 0), (
            "a squash view is the whole photo, so it tells the photo's size"
        )
        for sample in self._samples_of(facts):
            try:
                mask = sample.mask.decode(self._dataset.store.get, width=view.width, height=view.height)
            except (DataFault, KeyError) as error:
                raise self._changed(f"the mask of {sample.label_id}: {error}") from error
            if np.array_equal(apply_to_mask(mask, view), cached):
                return mask
        raise self._changed(f"the mask of {facts['label_id']} is another one")

    @cached_property
    def _dataset(self) -> Dataset:
        return open_dataset(self._data)

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        return {sample.label_id: sample for sample in self._dataset.samples(self._split)}

    def _samples_of(self, facts: Mapping[str, Any]) -> list[Sample]:
        """By its id; else by its content, which is what the cache goes by: files may have other names since."""
        label, phrase = str(facts["label_id"]), facts["phrase"]
        sample = self._samples.get(label)
        if sample is not None and sample.phrase == phrase:
            return [sample]
        alike = [one for one in self._samples.values() if one.phrase == phrase]
        alike = [one for one in alike if self._digest(one.image) == facts["image_digest"]]
        if not alike:
            raise self._changed(
                f"there is no {label} with the phrase {phrase!r}, nor another such on that photo"
            )
        return alike

    def _digest(self, key: str) -> str | None:
        if key not in self._digests:
            try:
                self._digests[key] = hashlib.sha256(self._dataset.store.get(key)).hexdigest()
            except KeyError:
                self._digests[key] = None
        return self._digests[key]

    def _load_photo(self, key: str, digest: str) -> Image.Image:
        try:
            data = self._dataset.store.get(key)
        except KeyError as error:
            raise self._changed(f"{key} is missing") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._changed(f"{key} is another photo")
        return decode_image(data)

    def _changed(self, what: str) -> UserError:
        return UserError(
            f"the data at {self._data.root} is not what the cache was computed from: {what}; "
            "run `ldznet precompute` again"
        )
