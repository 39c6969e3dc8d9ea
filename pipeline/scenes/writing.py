"""Writing a scenes data set as a folder: images, masks and, last of all, the list of phrases."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldznet.errors import UserError
from pipeline.scenes.backgrounds import photos_digest
from pipeline.scenes.clipart import clipart_digest
from pipeline.scenes.config import SPLITS, ScenesConfig, Split
from pipeline.scenes.nouns import divide_nouns
from pipeline.scenes.scene import Scene, compose_scene

FORMAT = 1  # raised whenever equal configurations begin to give other scenes
CLAIM, MARKER = "scenes.json", "phrases.jsonl"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenScenes:
    """What lies in a finished folder. `reused`: it was there already and nothing was written."""

    folder: Path
    digest: str
    phrases: int
    reused: bool


def describe_scenes(config: ScenesConfig) -> dict[str, Any]:
    """The content of `scenes.json`: the configuration, what it draws on, and the digest of both."""
    described = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "clipart": clipart_digest(),
        "photos": photos_digest(),
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return {"digest": hashlib.sha256(canonical.encode()).hexdigest(), **described}


def write_scenes(
    folder: Path, config: ScenesConfig, progress: Callable[[int, int], None] | None = None
) -> WrittenScenes:
    """Write the data set: `images/*.jpg`, `masks/*.png` (255 where the phrase is), `phrases.jsonl`.

    `scenes.json` claims the folder first, `phrases.jsonl` comes last and at once: a folder without it is not
    finished, and writing again completes it with the same bytes. A finished folder is left as it is.

    Args:
        folder: Where to write; made if missing.
        config: The data set.
        progress: Called with the scenes done and the scenes in all.

    Raises:
        UserError: The folder holds something else, or scenes of another configuration; or none can be composed.
    """
    # What is refused is refused before anything is written.
    divide_nouns(limit=config.nouns, held_out=config.held_out_nouns)
    for split in SPLITS:
        if config.counts.of(split):
            compose_scene(config, split=split, index=0)
    described = describe_scenes(config)
    _claim(folder, described)
    marker = folder / MARKER
    if marker.exists():
        with marker.open(encoding="utf-8") as lines:
            count = sum(1 for _ in lines)
        _log.info("%s holds these scenes already (%d phrases): nothing to do", folder, count)
        return WrittenScenes(folder=folder, digest=described["digest"], phrases=count, reused=True)
    for part in ("images", "masks"):
        (folder / part).mkdir(exist_ok=True)
    total = sum(config.counts.of(split) for split in SPLITS)
    records: list[dict[str, Any]] = []
    done = 0
    for split in SPLITS:
        for index in range(config.counts.of(split)):
            scene = compose_scene(config, split=split, index=index)
            records += write_scene(folder, scene, split=split, index=index, quality=config.jpeg_quality)
            done += 1
            if progress is not None:
                progress(done, total)
    _replace(marker, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    _log.info("wrote %d scenes with %d phrases to %s", total, len(records), folder)
    return WrittenScenes(folder=folder, digest=described["digest"], phrases=len(records), reused=False)


def write_scene(
    folder: Path, scene: Scene, *, split: Split, index: int, quality: int
) -> list[dict[str, Any]]:
    """Write one scene's image and masks; returns its lines for `phrases.jsonl`."""
    name = f"{split}_{index:05d}"
    image = f"images/{name}.jpg"
    Image.fromarray(scene.image).save(folder / image, quality=quality, subsampling=0)
    records = []
    for number, phrase in enumerate(scene.phrases):
        mask = f"masks/{name}_{number:02d}.png"
        Image.fromarray(phrase.mask).convert("L").save(folder / mask)
        records.append(
            {
                "image": image,
                "mask": mask,
                "phrase": phrase.text,
                "split": split,
                "kind": phrase.kind,
                "noun": phrase.noun,
                "style": scene.style,
                "area": round(float(phrase.mask.mean()), 5),  # share of the image
            }
        )
    return records


def _claim(folder: Path, described: dict[str, Any]) -> None:
    """Make the folder ours, or refuse it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the scenes")
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / CLAIM
    if claim.exists():
        try:
            found = json.loads(claim.read_text(encoding="utf-8"))["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{claim} cannot be read: remove the folder or name another") from error
        if found != described["digest"]:
            raise UserError(
                f"{folder} holds scenes of another configuration: remove it or name another folder"
            )
        return
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no {CLAIM}: name an empty or new folder")
    _replace(claim, json.dumps(described, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
