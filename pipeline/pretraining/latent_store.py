"""Latents and token ids of many scenes, encoded once into memory-mapped arrays, and batches of them.

    moments.npy   N,8,h,w  float16  posterior mean and standard deviation, unscaled
    tokens.npy    N,K,77   int32    token ids of each scene's captions
    latents.json  what they were made from, and how many rows are done

Rows are written in order and counted after they are on disk: a stopped run goes on where it was.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldznet.errors import UserError
from pipeline.draws import draw_generator
from pipeline.pretraining.autoencoder_batches import images_tensor, torch_generator
from pipeline.pretraining.scene_stream import SceneStream

logger = logging.getLogger(__name__)

MOMENTS, TOKENS, FACTS = "moments.npy", "tokens.npy", "latents.json"
_ROWS_A_FLUSH = 2048

Encode = Callable[[Tensor], Tensor]  # images B,3,H,W in [-1,1] -> B,8,h,w: mean and standard deviation
Tokenize = Callable[[list[str]], Tensor]  # prompts -> B,77


@dataclass(frozen=True, kw_only=True)
class LatentStore:
    """The finished arrays, memory-mapped."""

    moments: NDArray[np.float16]  # N,8,h,w
    tokens: NDArray[np.int32]  # N,K,77


def encoder_of(autoencoder: Any) -> Encode:
    """Encode images with an `AutoencoderKL`, on its device."""

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        posterior = autoencoder.encode(images.to(autoencoder.device)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).float()  # B,4,h,w x2 -> B,8,h,w

    return encode


def fill_latents(
    folder: Path,
    *,
    stream: SceneStream,
    scenes: int,
    batch_size: int,
    encode: Encode,
    tokenize: Tokenize,
    identity: str,
    go_on: Callable[[int], bool],
) -> LatentStore | None:
    """Encode scenes 0 .. `scenes`, or what is left of them.

    Args:
        folder: where the arrays lie; may hold the rows of a run that was stopped.
        stream: composes the scenes.
        scenes: rows in all.
        batch_size: scenes encoded at once.
        encode: the trained first stage.
        tokenize: the tokenizer.
        identity: digest of what the rows are made from.
        go_on: told how many rows are done, says whether to go on.

    Returns:
        The store, or None where `go_on` said to stop before the end.

    Raises:
        UserError: the folder holds other rows.
    """
    side = stream.config.size // 8
    shapes = {MOMENTS: (scenes, 8, side, side), TOKENS: (scenes, stream.captions, 77)}
    done = rows_done(folder, identity=identity, scenes=scenes)
    folder.mkdir(parents=True, exist_ok=True)
    moments, tokens = (
        _array(folder / name, shape, kind, anew=not done)
        for (name, shape), kind in zip(shapes.items(), (np.float16, np.int32), strict=True)
    )
    flushed = done

    def flush() -> None:
        nonlocal flushed
        moments.flush()
        tokens.flush()
        _write_facts(folder, {"identity": identity, "rows": done})
        flushed = done

    numbers = (range(first, min(first + batch_size, scenes)) for first in range(done, scenes, batch_size))
    for batch in stream.batches(numbers):
        if not go_on(done):
            break
        rows = slice(done, done + len(batch.images))
        moments[rows] = encode(images_tensor(batch.images)).half().cpu().numpy()
        flat = [caption for captions in batch.captions for caption in captions]
        tokens[rows] = tokenize(flat).view(len(batch.images), stream.captions, -1).numpy()
        done = rows.stop
        if done - flushed >= _ROWS_A_FLUSH:
            flush()
    if done > flushed:  # all rows, or those of a run that is to stop
        flush()
    return read_latents(folder) if done == scenes else None


def read_latents(folder: Path) -> LatentStore:
    """Open finished arrays."""
    moments, tokens = (np.load(folder / name, mmap_mode="r") for name in (MOMENTS, TOKENS))
    return LatentStore(moments=moments, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class LatentBatches:
    """Batches for the diffusion objective: an epoch is a permutation, every number a pure function of the step."""

    store: LatentStore
    scaling_factor: float  # gives latents unit standard deviation
    blank: Tensor  # 77: the empty caption's tokens
    seed: int
    batch_size: int
    full_captions: float
    drop_caption: float
    rank: int = 0
    ranks: int = 1

    def from_step(self, step: int) -> Iterator[dict[str, Tensor]]:
        """`latents`, `noise`, `timesteps` and `tokens` of step `step` and all that follow."""
        for each in count(step):
            yield {name: tensor[self.rank :: self.ranks] for name, tensor in self._batch(each).items()}

    def _batch(self, step: int) -> dict[str, Tensor]:
        rows = self._rows(step)
        chance = draw_generator("caption", self.seed, step)
        captions = np.where(
            chance.random(len(rows)) < self.full_captions,
            0,
            chance.integers(min(1, self.store.tokens.shape[1] - 1), self.store.tokens.shape[1], len(rows)),
        )
        tokens = torch.from_numpy(self.store.tokens[rows, captions]).long()
        dropped = torch.from_numpy(chance.random(len(rows)) < self.drop_caption)
        generator = torch_generator("noise", self.seed, step)
        moments = torch.from_numpy(self.store.moments[rows]).float()
        mean, std = moments.chunk(2, dim=1)  # B,8,h,w -> B,4,h,w x2
        latents = (mean + std * torch.randn(mean.shape, generator=generator)) * self.scaling_factor
        return {
            "latents": latents,
            "noise": torch.randn(mean.shape, generator=generator),
            "timesteps": torch.randint(0, 1000, (len(rows),), generator=generator),
            "tokens": torch.where(dropped[:, None], self.blank, tokens),
        }

    def _rows(self, step: int) -> NDArray[np.int64]:
        """The rows of a step: cut from the endless line of permutations."""
        size = len(self.store.moments)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        rows = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // size):
            here = places // size == epoch
            rows[here] = _permutation(self.seed, int(epoch), size)[places[here] % size]
        return rows


_permutations: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    key = (seed, epoch, size)
    if key not in _permutations:
        if len(_permutations) > 1:
            _permutations.clear()
        _permutations[key] = draw_generator("epoch", seed, epoch).permutation(size)
    return _permutations[key]


def rows_done(folder: Path, *, identity: str, scenes: int) -> int:
    """Rows of a folder that are done, which may be none.

    Raises:
        UserError: they are other rows.
    """
    facts = folder / FACTS
    if not facts.is_file():
        return 0
    found = json.loads(facts.read_text(encoding="utf-8"))
    if found["identity"] != identity:
        raise UserError(f"{folder} holds latents of another configuration: remove it or name another output")
    if np.load(folder / MOMENTS, mmap_mode="r").shape[0] != scenes:
        raise UserError(
            f"{folder} was begun with another number of scenes: remove it or set latents.scenes back"
        )
    return int(found["rows"])


def _array(path: Path, shape: tuple[int, ...], kind: type, *, anew: bool) -> Any:
    if not anew:
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    partial = folder / f".{FACTS}"
    partial.write_text(json.dumps(facts), encoding="utf-8")
    partial.replace(folder / FACTS)
