"""Features of other photos in place of a sample's own: a control of what a network takes from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldznet.errors import UserError
from pipeline.loading.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """One sample's features, for a batch to come that is of one photo alone."""

    photo: str
    features: dict[int, Tensor]  # 1,C,h_b,w_b
    scales: dict[int, Tensor]  # 1,G

    def fits(self, batch: Batch) -> bool:
        """Whether a batch's features are of the same blocks and sizes: a set may be of another size."""
        return {block: values.shape[1:] for block, values in self.features.items()} == {
            block: values.shape[1:] for block, values in batch.features.items()
        }


class OthersFeatures:
    """Gives each sample the block features of a sample of another photo: of its batch, or of one before it."""

    def __init__(self) -> None:
        self._kept: tuple[_Kept, ...] = ()  # of two photos at most

    def exchanged(self, batch: Batch) -> Batch:
        """The batch with features exchanged; padding keeps its own.

        Raises:
            UserError: neither this batch nor those before it have another photo.
        """
        self._kept = tuple(one for one in self._kept if one.fits(batch))
        photos = [str(facts["image_digest"]) for facts in batch.facts]
        real = torch.nonzero(batch.weight > 0).flatten().tolist()
        known = [*photos, *(one.photo for one in self._kept)]
        rows = torch.arange(len(photos))
        for place, row in enumerate(real):
            other = _another(photos[row], known, _order(real, place, len(known) - len(photos), len(photos)))
            if other is None:
                raise UserError(
                    "evaluate.models: features=others: no other photo came before those of "
                    f"{batch.facts[row]['image_id']}: raise evaluate.batch_size"
                )
            rows[row] = other
        exchanged = replace(
            batch,
            features=_taken(batch.features, [one.features for one in self._kept], rows),
            scales=_taken(batch.scales, [one.scales for one in self._kept], rows),
        )
        self._keep(batch, photos, real)
        return exchanged

    def _keep(self, batch: Batch, photos: Sequence[str], real: Sequence[int]) -> None:
        latest = {photos[row]: row for row in real}  # the last row of each photo
        found = [
            _Kept(photo=photo, features=_row(batch.features, row), scales=_row(batch.scales, row))
            for photo, row in list(latest.items())[-2:]
        ]
        before = [one for one in self._kept if one.photo not in latest]
        self._kept = (*before, *found)[-2:]


def _order(real: Sequence[int], place: int, kept: int, size: int) -> list[int]:
    """Rows to look at: from half a batch away on, for neighbours are phrases of one photo; then the kept ones."""
    begin = place + len(real) // 2
    around = [real[(begin + step) % len(real)] for step in range(len(real))]
    return [*around, *range(size, size + kept)]


def _another(photo: str, photos: Sequence[str], order: Sequence[int]) -> int | None:
    return next((row for row in order if photos[row] != photo), None)


def _taken(own: dict[int, Tensor], kept: Sequence[dict[int, Tensor]], rows: Tensor) -> dict[int, Tensor]:
    return {block: torch.cat([values, *(one[block] for one in kept)])[rows] for block, values in own.items()}


def _row(tensors: dict[int, Tensor], row: int) -> dict[int, Tensor]:
    return {block: values[row : row + 1].clone() for block, values in tensors.items()}
