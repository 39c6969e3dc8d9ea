"""The memory of a batch, filled row by row by several threads: bytes go to their place as they are read."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ldznet.images import to_tensor
from pipeline.cache.entry import Entry, EntryRest
from pipeline.loading.batch import Batch
from pipeline.loading.reused_memory import ReusedMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCALE = ".scale"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchForm:
    """Types and shapes of one sample's tensors: those of a batch have them in common."""

    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]  # by their names in a sample's file
    mask: tuple[int, ...]  # H,W
    image: tuple[int, ...] | None  # H,W,3

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """That of a sample like this one."""
        return cls(
            tensors={name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in _tensors(entry).items()},
            mask=entry.mask.shape,
            image=None if entry.image is None else entry.image.shape,
        )


class BatchBuffer:
    """A batch to be: so many rows, each to be filled or to stay missing. Threads may fill different rows at once."""

    def __init__(self, *, size: int, memory: ReusedMemory) -> None:
        """Takes no memory until it knows the form.

        Args:
            size: rows.
            memory: where it takes it from.
        """
        self._size, self._memory = size, memory
        self._lock = threading.Lock()
        self._form: BatchForm | None = None
        self._tensors: dict[str, Tensor] = {}
        self._mask_rows: NDArray[np.bool_]
        self._bytes: dict[str, NDArray[np.uint8]] = {}  # name -> B,bytes of a row
        self._masks = self._images = torch.empty(0)
        self._filled: list[tuple[str, dict[str, Any]] | None] = [None] * size  # key and facts

    def take_form(self, form: BatchForm) -> bool:
        """Whether the batch is of that form; the first to come gives it."""
        with self._lock:
            if self._form is None:
                self._allocate(form)
                self._form = form
        return self._form == form

    def _allocate(self, form: BatchForm) -> None:
        def empty(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return self._memory.empty(name, self._size, *shape, dtype=dtype)

        for name, (dtype, shape) in form.tensors.items():
            tensor = self._tensors[name] = empty(name, *shape, dtype=dtype)
            self._bytes[name] = tensor.view(self._size, -1).view(torch.uint8).numpy()
        self._masks = empty("masks", 1, *form.mask, dtype=torch.bool)
        self._mask_rows = self._masks[:, 0].numpy()  # B,H,W
        if form.image is not None:
            height, width, channels = form.image
            self._images = empty("images", channels, height, width)

    def place(self, row: int, name: str) -> memoryview:
        """Where the bytes of a row's tensor go."""
        return memoryview(self._bytes[name][row])

    def finish(self, row: int, *, key: str, rest: EntryRest) -> bool:
        """Fill what is no tensor of the sample's file: with that the row is there. False for a mask of another form."""
        assert self._form is not None, "its tensors are there already"
        image = None if rest.image is None else rest.image.shape
        if (rest.mask.shape, image) != (self._form.mask, self._form.image):
            return False
        self._mask_rows[row] = rest.mask
        if rest.image is not None:
            self._images[row] = to_tensor(rest.image)
        self._filled[row] = (key, rest.facts)
        return True

    def clear(self, rows: range) -> None:
        """Rows are missing again."""
        for row in rows:
            self._filled[row] = None

    def put(self, row: int, entry: Entry) -> None:
        """Fill a row with a copy of a sample.

        Raises:
            ValueError: it is of another form.
        """
        if not self.take_form(BatchForm.of(entry)):
            raise ValueError(f"the sample {entry.key} has tensors of other types or shapes than its batch")
        for name, tensor in _tensors(entry).items():
            self._tensors[name][row] = tensor
        rest = EntryRest(mask=entry.mask, facts=entry.facts, image=entry.image)
        self.finish(row, key=entry.key, rest=rest)

    @property
    def samples(self) -> int:
        """Rows that are there."""
        return sum(filled is not None for filled in self._filled)

    def batch(self, *, samples: int) -> Batch:
        """The batch. Missing rows end up behind the others, and repeat the last one.

        Args:
            samples: the first so many have weight 1, the others 0.
        """
        there = [row for row, filled in enumerate(self._filled) if filled is not None]
        assert there, "a batch has at least one sample"
        rows = [*there, *[there[-1]] * (self._size - len(there))]
        filled = [one for one in (self._filled[row] for row in rows) if one is not None]
        tensors = {name: self._ordered(tensor, rows) for name, tensor in self._tensors.items()}
        weight = self._memory.empty("weight", self._size, dtype=torch.float32)
        torch.lt(torch.arange(self._size), samples, out=weight)
        blocks = sorted(int(name.removeprefix("block_")) for name in tensors if _is_block(name))
        return Batch(
            keys=tuple(key for key, _ in filled),
            latents=tensors["latents"],
            context=tensors["context"],
            features={block: tensors[f"block_{block}"] for block in blocks},
            scales={
                block: tensors[f"block_{block}{_SCALE}"]
                for block in blocks
                if f"block_{block}{_SCALE}" in tensors
            },
            masks=self._ordered(self._masks, rows),
            weight=weight,
            images=self._ordered(self._images, rows) if self._form and self._form.image else None,
            facts=tuple(facts for _, facts in filled),
        )

    def _ordered(self, tensor: Tensor, rows: Sequence[int]) -> Tensor:
        """The tensor's rows in that order, in place: no row moves back."""
        for row, source in enumerate(rows):
            if row != source:
                tensor[row] = tensor[source]
        return tensor


def _tensors(entry: Entry) -> dict[str, Tensor]:
    """By the names that they have in a sample's file."""
    return {
        "latents": entry.latents,
        "context": entry.context,
        **{f"block_{block}": tensor for block, tensor in entry.features.items()},
        **{f"block_{block}{_SCALE}": tensor for block, tensor in entry.scales.items()},
    }


def _is_block(name: str) -> bool:
    return name.startswith("block_") and not name.endswith(_SCALE)
