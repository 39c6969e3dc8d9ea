"""A folder of masks that any other system made, to be scored like a network of ours.

One file for each sample of a set, in `FOLDER/SET/` or in `FOLDER/` itself, named by the sample's key in the cache or
by its label's id in the data set, `KEY.png` or `LABEL.png`. In a label's id everything but letters, digits and `_.-~`
is percent-encoded, as in URLs: `masks/7.png:ab12` is `masks%2F7.png%3Aab12.png`. PhraseCut's label id is the task id,
that of referring sets `REFID_SENTID`. `ldznet evaluate` lists phrases and file names in `phrases-SET.jsonl`.

`.png`: a mask, non-zero pixels are the phrase's. `.npy`: a mask (bool, or integers other than 0), or probabilities
(floats in [0, 1]). `H,W` of any size; the photo's own is best.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ldznet.errors import DataFault, UserError
from ldznet.images import decode_mask

SUFFIXES = (".png", ".npy")


class MaskFolder:
    """Masks or probabilities by sample."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.binary = True  # whether every map read so far was a mask

    def has(self, set_name: str) -> bool:
        """Whether there is a folder of its own for a set."""
        return (self._folder / set_name).is_dir()

    def read(
        self, set_name: str, *, key: str, facts: Mapping[str, Any]
    ) -> NDArray[np.bool_] | NDArray[np.float32]:
        """One sample's mask (bool) or probabilities (float32), `H,W`.

        Raises:
            UserError: there is no file for it, or one that cannot be read.
        """
        path = self._find(set_name, key=key, facts=facts)
        try:
            found = _read_npy(path) if path.suffix == ".npy" else decode_mask(path.read_bytes())
        except (DataFault, ValueError, OSError, EOFError) as error:
            raise UserError(f"mask {path}: {error}") from error
        self.binary = self.binary and found.dtype == np.bool_
        return found

    def _find(self, set_name: str, *, key: str, facts: Mapping[str, Any]) -> Path:
        label = file_stem(str(facts["label_id"]))
        places = (self._folder / set_name, self._folder)
        for place in places:
            for stem in (key, label):
                for suffix in SUFFIXES:
                    path = place / f"{stem}{suffix}"
                    if path.is_file():
                        return path
        raise UserError(
            f"{self._folder} has no mask for the phrase {facts['phrase']!r} about {facts['image_id']}: "
            f"{set_name}/{label}.png or .npy is expected, for every sample"
        )


def file_stem(label_id: str) -> str:
    """A label's id as the name of a file."""
    return quote(label_id, safe="")


def holds_masks(folder: Path) -> bool:
    """Whether any mask lies in the folder, or in a folder inside it."""
    return any(True for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in SUFFIXES)


def _read_npy(path: Path) -> NDArray[np.bool_] | NDArray[np.float32]:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size:
        raise ValueError(f"one array H,W is expected, not {getattr(array, 'shape', 'an archive')}")
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer):
        mask: NDArray[np.bool_] = array != 0
        return mask
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"a mask or probabilities are expected, not {array.dtype}")
    if not (array.min() >= 0 and array.max() <= 1):  # true of NaN as well
        raise ValueError("probabilities must lie in [0, 1]")
    return array.astype(np.float32)
