"""Batches of generated scenes: images and captions, composed here or by worker processes, always in order."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldznet.prompts import TEMPLATES, fill
from pipeline.draws import draw_generator
from pipeline.scenes.config import ScenesConfig, Split
from pipeline.scenes.scene import Scene, compose_scene

_AHEAD = 3  # batches a worker that wait or are being made


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneBatch:
    """Scenes of consecutive or any numbers. Each has the same number of captions, the whole one first."""

    images: NDArray[np.uint8]  # B,H,W,3
    captions: tuple[tuple[str, ...], ...]


def scene_captions(scene: Scene, *, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """The scene's caption and `count - 1` prompts, each a phrase of the scene in a prompt template.

    The prompts are what segmentation will ask with: a phrase names only a part of what can be seen.
    """
    prompts = []
    for _ in range(count - 1):
        phrase = scene.phrases[int(rng.integers(len(scene.phrases)))].text
        prompts.append(fill(TEMPLATES[int(rng.integers(len(TEMPLATES)))], phrase))
    return (scene.caption, *prompts)


def compose_batch(config: ScenesConfig, *, split: Split, numbers: Sequence[int], captions: int) -> SceneBatch:
    """The scenes of these numbers: a pure function of its arguments."""
    scenes = [compose_scene(config, split=split, index=number) for number in numbers]
    return SceneBatch(
        images=np.stack([scene.image for scene in scenes]),
        captions=tuple(
            scene_captions(scene, count=captions, rng=draw_generator("captions", config.seed, split, number))
            for scene, number in zip(scenes, numbers, strict=True)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class SceneStream:
    """Composes batches of scene numbers, in their order. `workers=0` composes in this process."""

    config: ScenesConfig
    split: Split
    captions: int = 1
    workers: int = 0

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[SceneBatch]:
        """One batch for each sequence of scene numbers."""
        if self.workers == 0:
            for each in numbers:
                yield compose_batch(self.config, split=self.split, numbers=each, captions=self.captions)
            return
        # Spawned: a fork would copy the threads' locks of torch and CUDA.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context, initializer=_one_thread) as pool:
            waiting: deque[Future[SceneBatch]] = deque()
            try:
                for each in numbers:
                    waiting.append(
                        pool.submit(
                            compose_batch,
                            self.config,
                            split=self.split,
                            numbers=each,
                            captions=self.captions,
                        )
                    )
                    if len(waiting) > _AHEAD * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
