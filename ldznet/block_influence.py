"""Where a network's mask comes from: how far another phrase, or other features, at one block alone move it.

A block whose cross-attention could read anything without the mask changing decides nothing about it, whatever its
features hold.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldznet.blocks import Block, unet_blocks
from ldznet.config import Config
from ldznet.errors import UserError
from ldznet.modeling.network import SegmentationNetwork


class BlockInfluence(Config):
    """One block's. Shares are root-mean-square changes of the logits, in standard deviations of the logits."""

    block: int
    side: int  # cells of its grid
    text: float  # another sample's phrase in its cross-attention to the text
    features: float | None  # another sample's features in its fusion; None: not fused


@dataclass(kw_only=True)
class InfluenceMeter:
    """Adds up batch by batch what changes at one block alone do to the logits of a network in evaluation mode.

    What another sample is: the one half a batch away.

    Raises:
        UserError: the network reads no text.
    """

    network: SegmentationNetwork
    _count: int = 0
    _sum: float = 0.0
    _squares: float = 0.0
    _side: int = 0  # of the latents
    _text: dict[int, float] = field(default_factory=dict)  # block -> sum of squared changes
    _features: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.network.config.text == "none":
            raise UserError("the network reads no text (text: none), so that none can move its masks")

    @torch.inference_mode()
    def update(
        self,
        *,
        latents: Tensor,
        context: Tensor,
        features: Mapping[int, Tensor] | None = None,
        images: Tensor | None = None,
    ) -> None:
        """Measure on a batch of two samples or more; arguments as the network takes them."""
        assert len(latents) > 1, "a batch with another sample"
        own = dict(features or {})

        def logits(given: dict[int, Tensor]) -> Tensor:
            return self.network(latents=latents, context=context, features=given, images=images).double()

        reference = logits(own)
        self._count += reference.numel()
        self._sum += float(reference.sum())
        self._squares += float(reference.square().sum())
        self._side = latents.shape[-1]
        other_text = _of_another(context)
        for number, block in self._blocks.items():
            with _reading(self.network, block, other_text):
                _add(self._text, number, logits(own) - reference)
        for number in self.network.blocks:
            changed = {**own, number: _of_another(own[number])}
            _add(self._features, number, logits(changed) - reference)

    @property
    def blocks(self) -> tuple[BlockInfluence, ...]:
        """What was found, block by block."""
        assert self._count, "something was measured"
        deviation = (self._squares / self._count - (self._sum / self._count) ** 2) ** 0.5

        def share(squares: float) -> float:
            return (squares / self._count) ** 0.5 / deviation

        return tuple(
            BlockInfluence(
                block=number,
                side=max(1, self._side // block.stride),
                text=share(self._text[number]),
                features=share(self._features[number]) if number in self._features else None,
            )
            for number, block in self._blocks.items()
        )

    @property
    def _blocks(self) -> dict[int, Block]:
        return unet_blocks(self.network.unet)


def _add(sums: dict[int, float], number: int, change: Tensor) -> None:
    sums[number] = sums.get(number, 0.0) + float(change.square().sum())


def _of_another(samples: Tensor) -> Tensor:
    return samples.roll(len(samples) // 2, 0)


@contextmanager
def _reading(network: SegmentationNetwork, block: Block, context: Tensor) -> Iterator[None]:
    """While open, the text cross-attention of a block reads this context in place of its own."""

    def with_other_text(_module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        assert "encoder_hidden_states" in named, "diffusers and our fusion name it"
        return given, {**named, "encoder_hidden_states": context}

    layer: Any = network.unet.get_submodule(block.path)
    hooks = [
        one.attn2.register_forward_pre_hook(with_other_text, with_kwargs=True)
        for one in layer.transformer_blocks
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
