"""Samples computed online, stacked into a batch of a fixed size."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from ldznet.images import to_tensor
from pipeline.loading.batch import Batch
from pipeline.online.decoding import Outcome
from pipeline.online.frozen_stream import FrozenRow
from pipeline.precompute.preparation import Prepared, sample_facts

_CONTEXT_TOKENS = 77


def blank_row(ldm: FrozenLDM, *, side: int, blocks: Sequence[int]) -> FrozenRow:
    """Zeros of the shapes that a view of `side` px gives."""
    latent_side = side // ldm.latent_stride
    shapes = ldm.block_shapes(side, side, blocks) if blocks else {}
    return FrozenRow(
        latents=torch.zeros(ldm.latent_channels, latent_side, latent_side, device=ldm.device),
        context=torch.zeros(_CONTEXT_TOKENS, ldm.context_width, device=ldm.device, dtype=ldm.dtype),
        features={
            block: torch.zeros(shape, device=ldm.device, dtype=ldm.dtype) for block, shape in shapes.items()
        },
    )


def assemble(
    outcomes: Sequence[Outcome],
    computed: Iterator[FrozenRow],
    *,
    size: int,
    side: int,
    blank: FrozenRow,
    with_images: bool,
) -> Batch:
    """A row an outcome, in their order, then padding. What has no data is zeros, and weighs nothing.

    Args:
        outcomes: at most `size`.
        computed: what the frozen networks made of those that are prepared, in the same order.
        size: rows of the batch.
        side: px of the views.
        blank: stands in where nothing was computed.
        with_images: the views' pixels too.
    """
    rows: list[FrozenRow] = []
    masks, weight = torch.zeros(size, 1, side, side, dtype=torch.bool), torch.zeros(size)
    images = torch.zeros(size, 3, side, side) if with_images else None
    keys: list[str] = []
    facts: list[dict[str, Any]] = []
    for number, (_, one) in enumerate(zip_longest(range(size), outcomes)):
        if not isinstance(one, Prepared):
            rows.append(blank)
            keys.append("padding" if one is None else one.key)
            facts.append({})
            continue
        rows.append(next(computed))
        masks[number, 0] = torch.from_numpy(one.mask)
        weight[number] = 1
        if images is not None:
            images[number] = to_tensor(one.pixels)
        keys.append(one.member.key)
        facts.append(sample_facts(one.member, view=one.view, prompt=one.prompt, timestep=one.timestep))
    return Batch(
        keys=tuple(keys),
        latents=torch.stack([row.latents for row in rows]),  # B,4,h,w
        context=torch.stack([row.context for row in rows]),  # B,77,D
        features={block: _stacked(rows, block) for block in blank.features},
        masks=masks,
        weight=weight,
        images=images,
        facts=tuple(facts),
    )


def _stacked(rows: Sequence[FrozenRow], block: int) -> Tensor:
    return torch.stack([row.features[block] for row in rows])  # B,C,h_b,w_b
