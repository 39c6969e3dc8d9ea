"""Backgrounds: crops of the photos in the scikit-image and scikit-learn wheels, gradients and soft noise."""

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_HUES = {  # what a plain background may be called, with the colour meant
    "pale grey": (226, 228, 231),
    "dark grey": (62, 66, 72),
    "light blue": (176, 214, 240),
    "dark blue": (34, 52, 96),
    "light green": (190, 224, 182),
    "dark green": (32, 78, 58),
    "beige": (234, 219, 193),
    "brown": (112, 82, 60),
    "pink": (244, 200, 212),
    "lilac": (208, 196, 236),
    "peach": (250, 208, 174),
    "turquoise": (120, 200, 196),
    "cream": (250, 243, 220),
    "dark red": (104, 34, 40),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A photo in an installed wheel. `shows`: nouns and kinds that it holds, so that no object may be one."""

    package: str
    file: str
    held_out: bool  # kept out of every training split
    shows: frozenset[str] = frozenset()
    words: str = ""  # true of any crop, or empty
    tint: tuple[int, int, int] | None = None  # colour for a grey photo


PHOTOS = (
    Photo(
        package="skimage",
        file="data/chelsea.png",
        held_out=False,
        shows=frozenset({"cat"}),
    ),
    Photo(
        package="skimage",
        file="data/coffee.png",
        held_out=False,
        shows=frozenset({"cup", "spoon", "bowl", "drink", "tea"}),
    ),
    Photo(
        package="skimage",
        file="data/retina.jpg",
        held_out=False,
        shows=frozenset({"planet", "moon", "orange"}),
    ),
    Photo(
        package="sklearn",
        file="datasets/images/china.jpg",
        held_out=False,
        shows=frozenset({"house", "tree", "plant", "cloud", "boat"}),
    ),
    Photo(
        package="skimage",
        file="data/hubble_deep_field.jpg",
        held_out=False,
        shows=frozenset({"star", "planet", "moon", "comet"}),
        words="the night sky",
    ),
    Photo(
        package="skimage",
        file="data/brick.png",
        held_out=False,
        words="a brick pavement",
        tint=(208, 132, 104),
    ),
    Photo(
        package="skimage",
        file="data/grass.png",
        held_out=False,
        shows=frozenset({"plant", "tree"}),
        words="grass",
        tint=(128, 184, 84),
    ),
    Photo(package="skimage", file="data/ihc.png", held_out=False),
    Photo(
        package="sklearn",
        file="datasets/images/flower.jpg",
        held_out=True,
        shows=frozenset({"flower", "plant"}),
    ),
    Photo(
        package="skimage",
        file="data/rocket.jpg",
        held_out=True,
        shows=frozenset({"rocket", "tower crane", "light", "plane", "lamp"}),
    ),
    Photo(
        package="skimage",
        file="data/gravel.png",
        held_out=True,
        shows=frozenset({"stone"}),
        words="gravel",
        tint=(214, 198, 176),
    ),
    Photo(
        package="skimage",
        file="data/moon.png",
        held_out=True,
        shows=frozenset({"moon", "planet", "stone"}),
        tint=(196, 196, 206),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """A background, `H,W,3 uint8`; what it shows; and words for it, empty where none are surely true."""

    pixels: NDArray[np.uint8]
    shows: frozenset[str]
    words: str


@functools.cache
def _path(photo: Photo) -> Path | None:
    spec = importlib.util.find_spec(photo.package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / photo.file
    return path if path.is_file() else None


@functools.cache
def installed_photos(*, held_out: bool) -> tuple[Photo, ...]:
    """The photos of training, or those held out from it, as far as their wheels are installed."""
    return tuple(photo for photo in PHOTOS if photo.held_out == held_out and _path(photo) is not None)


@functools.cache
def photos_digest() -> str:
    """A digest of the installed photos: scenes made with other photos are other scenes."""
    digest = hashlib.sha256()
    for photo in PHOTOS:
        path = _path(photo)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path else "missing"
        digest.update(f"{photo.file} {content}\n".encode())
    return digest.hexdigest()


@functools.cache
def _decoded(photo: Photo) -> Image.Image:
    path = _path(photo)
    if path is None:
        raise FileNotFoundError(photo.file)
    image = Image.open(path).convert("RGB")
    if photo.tint is not None:
        grey = np.asarray(image, dtype=np.float32) / 255
        grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-6)
        image = Image.fromarray((grey * np.array(photo.tint)).astype(np.uint8))
    image.thumbnail((1024, 1024))
    return image


def _photo(rng: np.random.Generator, size: int, photo: Photo) -> Background:
    image = _decoded(photo)
    side = min(image.size) * rng.uniform(0.6, 1)
    left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
    crop = image.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side), reducing_gap=2
    )
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:  # out of focus, as behind a subject
        crop = crop.filter(ImageFilter.BoxBlur(size / 256 * rng.uniform(0.5, 3)))
    lit = np.asarray(crop, dtype=np.float32) * rng.uniform(0.75, 1.15) + rng.uniform(0, 20)
    return Background(
        pixels=np.clip(lit, 0, 255).astype(np.uint8),
        shows=photo.shows,
        words=f"in front of {photo.words}" if photo.words else "",
    )


def _two_colours(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    names = list(_HUES)
    first = names[int(rng.integers(len(names)))]
    here = np.array(_HUES[first], dtype=np.float32)
    if rng.random() < 0.6:
        there = np.clip(here * rng.uniform(0.8, 0.92), 0, 255).astype(np.float32)
        return here, there, f"on a {first} background"
    second = names[int(rng.integers(len(names)))]
    words = f"a {first}" if first == second else f"a {first} and {second}"
    return here, np.array(_HUES[second], dtype=np.float32), f"on {words} background"


def _blend(
    share: NDArray[np.float32], colours: tuple[NDArray[np.float32], NDArray[np.float32], str]
) -> Background:
    here, there, words = colours
    pixels = here + share[..., None] * (there - here)
    return Background(pixels=np.rint(pixels).astype(np.uint8), shows=frozenset(), words=words)


def _gradient(rng: np.random.Generator, size: int) -> Background:
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size
    if rng.random() < 0.7:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5
    else:
        ramp = np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) * 1.4
    return _blend(np.clip(ramp, 0, 1).astype(np.float32), _two_colours(rng))


def _noise(rng: np.random.Generator, size: int) -> Background:
    share = np.zeros((size, size), dtype=np.float32)
    for cells, weight in ((3, 0.5), (7, 0.3), (15, 0.2)):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        share += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return _blend(np.clip(share * 1.6 - 0.3, 0, 1).astype(np.float32), _two_colours(rng))


def draw_background(rng: np.random.Generator, *, size: int, photos: float, held_out: bool) -> Background:
    """A background of `size` pixels a side: a photo with probability `photos`, else a gradient or soft noise.

    Where the photos' packages are missing, gradients and noise take their place.
    """
    choices = installed_photos(held_out=held_out)
    wanted = rng.random() < photos
    if wanted and choices:
        return _photo(rng, size, choices[int(rng.integers(len(choices)))])
    return _gradient(rng, size) if rng.random() < 0.6 else _noise(rng, size)
