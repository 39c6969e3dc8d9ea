"""Memory of batches that are gone, for those to come.

Fresh memory costs a page fault for each 4 KiB, which at a gigabyte a second is more work than reading and checking.
"""

import math
import weakref
from collections import defaultdict, deque
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Place = Literal["own", "pinned", "shared"]
_ALIGNMENT = 64  # bytes, as torch's own


class ReusedMemory:
    """Gives tensors; takes the memory of one back when nothing refers to it any more. For several threads."""

    def __init__(self, *, most: int, place: Place = "own") -> None:
        """Holds nothing yet.

        Args:
            most: unused pieces that are kept, of each name and size.
            place: the process's own memory; pinned, which torch itself keeps and gives again; or shared with another
                process, which is not given again: it is the other's when the tensor has gone there, without a copy.
        """
        self._place = place
        self._unused: dict[tuple[str, int], deque[NDArray[np.uint8]]] = defaultdict(
            lambda: deque(maxlen=most)
        )

    def empty(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor of any content, for what is called by that name."""
        if self._place == "pinned":
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        size = math.prod(shape) * dtype.itemsize
        if self._place == "shared":
            storage = torch.UntypedStorage._new_shared(size, device="cpu")  # noqa: SLF001 - as torch.utils.data itself
            return torch.empty(0, dtype=dtype).set_(storage).view(shape)
        unused = self._unused[name, size]
        try:
            piece = unused.pop()
        except IndexError:
            piece = _allocate(size)
        lent = piece.view()  # the tensor refers to it: with its last user it goes
        weakref.finalize(lent, unused.append, piece).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)


def _allocate(size: int) -> NDArray[np.uint8]:
    whole = np.empty(size + _ALIGNMENT, np.uint8)  # in huge pages, where it is large and the system has them
    start = -whole.ctypes.data % _ALIGNMENT
    return whole[start : start + size]
