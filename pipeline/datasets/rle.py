"""COCO's run-length encoding of masks: runs down the columns, the first of zeros."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MAX_CHARACTERS = 10  # of one number: 50 bits, far more than any image needs


def runs_from_text(counts: bytes) -> NDArray[np.int64]:
    """Run lengths out of COCO's compressed text.

    A number is written as groups of 5 bits, lowest first, each a character from `0` (48) on with bit 5 set
    where more follow; bit 4 of the last is the sign. From the fourth on, a number is the difference to the
    one two before it.

    Raises:
        ValueError: not such a text.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("characters that COCO's encoding does not use")
    last = (codes & 32) == 0  # whether a number ends here
    if not last[-1]:
        raise ValueError("cut short within a number")
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    ends = np.flatnonzero(last)
    if (ends - starts).max() >= _MAX_CHARACTERS:
        raise ValueError("a number without an end")
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def runs_to_text(runs: Sequence[int] | NDArray[np.int64]) -> bytes:
    """COCO's compressed text of run lengths, the inverse of `runs_from_text`."""
    text = bytearray()
    for index, run in enumerate(runs):
        rest = int(run) - (int(runs[index - 2]) if index > 2 else 0)
        more = True
        while more:
            code, rest = rest & 31, rest >> 5
            more = rest != (-1 if code & 16 else 0)
            text.append(48 + code + (32 if more else 0))
    return bytes(text)


def mask_from_runs(runs: NDArray[np.int64], *, width: int, height: int) -> NDArray[np.bool_]:
    """Runs down the columns -> `H,W`.

    Raises:
        ValueError: the runs are negative or do not fill the mask exactly.
    """
    if runs.size and (runs.min() < 0 or runs.max() > width * height):
        raise ValueError("a run that is longer than the mask, or negative")
    if int(runs.sum()) != width * height:
        raise ValueError(f"runs for {int(runs.sum())} pixels, not {width} x {height}")
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)  # W,H -> H,W


def mask_to_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`H,W` -> runs down the columns, the first of zeros (of length 0 where the mask starts with a one)."""
    flat = mask.T.reshape(-1)
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], [0] if flat[:1].any() else [], turns, [flat.size]))
    return np.diff(edges).astype(np.int64)
