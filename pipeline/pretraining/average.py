"""The exponential moving average of a network's trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averaged weights by name: the ones that are validated and kept."""

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self._live = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}
        self._decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (1 is the first): decay min(limit, (1+n)/(10+n))."""
        decay = min(self._decay, (1 + step) / (10 + step))
        live: list[Tensor] = [self._live[name] for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), live, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the network computes with the averaged weights; afterwards with its own again, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._write(self.weights)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(weights[name])
