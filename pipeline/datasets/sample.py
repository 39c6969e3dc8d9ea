"""One sample: a phrase about an image, and where the mask of what it names comes from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldznet.errors import DataFault
from ldznet.images import MAX_PIXELS, decode_image
from pipeline.object_store.faults import ObjectTooLargeError
from pipeline.object_store.store import ObjectStore

MAX_OBJECT_BYTES = 2**28  # of an image or a mask: more than any file of `MAX_PIXELS` pixels has

ReadObject = Callable[[str], bytes]


def bounded_reader(store: ObjectStore) -> ReadObject:
    """Reads images and masks of a store; one that is too large for either is a `DataFault`, and is not read."""

    def read(key: str) -> bytes:
        try:
            return store.get(key, at_most=MAX_OBJECT_BYTES)
        except ObjectTooLargeError as error:
            raise DataFault(str(error)) from error

    return read


class MaskSource(Protocol):
    """Where a mask comes from. Small and picklable; decoded only where it is needed."""

    def objects(self) -> tuple[str, ...]:
        """Keys of the objects that it is read from."""
        ...

    def identity(self, digest: Callable[[str], str]) -> str:
        """A text that changes whenever the mask does. `digest(key)` gives the content digest of an object."""
        ...

    def decode(self, read: ReadObject, *, width: int, height: int) -> NDArray[np.bool_]:
        """The mask at the image's own size, `H,W`. Raises `DataFault` where the data is unusable."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One phrase about one image. Nothing is decoded yet."""

    image_id: str  # the data set's own name for the image
    label_id: str  # the data set's own name for this phrase about it, one of a kind in its split
    image: str  # key of the image object in the data set's store
    phrase: str
    mask: MaskSource
    split: str


def check_sample(sample: Sample) -> None:
    """Refuse a sample whose record is sound but says nothing; to be asked before anything is decoded.

    Readers yield such samples, so that they are counted and quarantined like all others.

    Raises:
        DataFault: the phrase is empty, or holds characters that are no text.
    """
    if not sample.phrase.strip():
        raise DataFault("the phrase is empty")
    if "\0" in sample.phrase or any("\ud800" <= character <= "\udfff" for character in sample.phrase):
        raise DataFault("the phrase holds characters that are no text")


def load_image(sample: Sample, read: ReadObject, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The sample's photo, upright and RGB.

    Raises:
        DataFault: there is no such object, or it is no image that can be read.
    """
    try:
        data = read(sample.image)
    except KeyError as error:
        raise DataFault(f"image {sample.image} is missing") from error
    try:
        return decode_image(data, max_pixels=max_pixels)
    except DataFault as fault:
        raise DataFault(f"image {sample.image}: {fault}") from fault


class Dataset(Protocol):
    """A data set: a name, a store that holds its objects, and samples read lazily."""

    @property
    def name(self) -> str:
        """A short name for logs and reports."""
        ...

    @property
    def store(self) -> ObjectStore:
        """The store in which `Sample.image` and mask keys are found."""
        ...

    def splits(self) -> tuple[str, ...]:
        """The splits that the data set has."""
        ...

    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of one split, lazily, in a stable order. `UserError` names a split not there."""
        ...
