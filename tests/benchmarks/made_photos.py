"""A made-up data set with PhraseCut's proportions, in the folder layout: 4.3 phrases a photo, photos of 480 x 360."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

PHRASES_A_PHOTO = (4, 5, 4, 4, 5, 4, 4, 5, 4, 4)  # 4.3 on average
WIDTH, HEIGHT = 480, 360
_NOUNS, _ATTRIBUTES = 300, 40


def write_photos(folder: Path, *, photos: int, seed: int = 0) -> int:
    """Write the data set, one split `train`. Returns how many phrases it has.

    Nouns and attributes follow Zipf's law, so that some phrases come back on other photos, as in PhraseCut. Every
    mask is 80 px wide at the photo's middle: no view passes it by, so that no phrase is filtered.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    lines = []
    for photo in range(photos):
        image = f"images/{photo}.jpg"
        _photo(random).save(folder / image, quality=90)
        for number, phrase in enumerate(_phrases(random, PHRASES_A_PHOTO[photo % len(PHRASES_A_PHOTO)])):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            top = int(random.integers(0, HEIGHT - 120))
            mask[top : top + 120, WIDTH // 2 - 40 : WIDTH // 2 + 40] = 255
            name = f"masks/{photo}-{number}.png"
            Image.fromarray(mask).save(folder / name)
            lines.append({"image": image, "mask": name, "phrase": phrase, "split": "train"})
    (folder / "phrases.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return len(lines)


def _photo(random: np.random.Generator) -> Image.Image:
    """Smooth colours with detail at several scales, so that it takes as long to decode as a photo."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells in (3, 12, 48, 180):
        noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        resized = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += np.asarray(resized, np.float32) / 4
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _phrases(random: np.random.Generator, count: int) -> list[str]:
    """So many different phrases: a noun, and before two of three an attribute."""
    found: dict[str, None] = {}
    while len(found) < count:
        noun, attribute = _zipf(random, _NOUNS), _zipf(random, _ATTRIBUTES)
        found[f"noun{noun}" if random.random() < 1 / 3 else f"attribute{attribute} noun{noun}"] = None
    return list(found)


def _zipf(random: np.random.Generator, count: int) -> int:
    weights = 1 / np.arange(1, count + 1)
    return int(random.choice(count, p=weights / weights.sum()))
