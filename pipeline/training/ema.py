"""Exponential moving average of the weights, by parameter name, on each rank's own part."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.training import ranks
from pipeline.training.engine import Engine
from pipeline.training.named_tensors import open_named, own_turn

EMA_FILE = "ema.safetensors"
LARGEST_DECAY = 0.9999


def ema_decay(updates: int) -> float:
    """Decay of the n-th update (training as published): min(0.9999, (1+n)/(10+n))."""
    return min(LARGEST_DECAY, (1 + updates) / (10 + updates))


class EMA:
    """The average that inference uses. Under ZeRO-3 a rank averages its part; wholes exist only while saving."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._average = {name: own.detach().clone() for name, own in engine.local_parameters().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        self.updates += 1
        current = self._engine.local_parameters()
        average = get_ema_multi_avg_fn(ema_decay(self.updates))
        average(list(self._average.values()), [current[name] for name in self._average], None)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the network computes with the averaged weights; afterwards with its own again, bit for bit."""
        kept = {name: own.clone() for name, own in self._engine.local_parameters().items()}
        self._write(self._average)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, parts: dict[str, Tensor]) -> None:
        self._engine.release()
        for name, own in self._engine.local_parameters().items():
            own.copy_(parts[name])

    def whole(self, name: str) -> Tensor | None:
        """The whole averaged parameter; None for what is not averaged (buffers, frozen weights). Collective."""
        average = self._average.get(name)
        return None if average is None else self._engine.gather(name, average)

    def state_dict(self) -> dict[str, Tensor]:
        """Whole averaged weights by name, on the CPU of rank 0; empty elsewhere. Collective."""
        wholes: dict[str, Tensor] = {}
        for name, average in self._average.items():
            whole = self._engine.gather(name, average)
            if ranks.rank() == 0:
                wholes[name] = whole.to("cpu", copy=True)
        return wholes

    def snapshot(self) -> dict[str, Tensor]:
        """This rank's turn of the whole averages. Collective."""
        named = [
            (name, partial(self._engine.gather, name, average)) for name, average in self._average.items()
        ]
        return own_turn([*named, ("updates", lambda: torch.tensor([self.updates]))])

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what any number of ranks wrote."""
        with open_named(folder, EMA_FILE) as wholes:
            for name, average in self._average.items():
                average.copy_(self._engine.part(name, wholes[name]))
            self.updates = int(wholes["updates"])


def model_state(engine: Engine, ema: EMA | None) -> dict[str, Tensor]:
    """The network's whole state by name, averaged where there is an EMA, on the CPU of rank 0; empty elsewhere.

    Collective. What a saved model is made of.
    """
    engine.release()
    state: dict[str, Tensor] = {}
    for name, gather in engine.whole_state():
        averaged = None if ema is None else ema.whole(name)
        whole = gather() if averaged is None else averaged
        if ranks.rank() == 0:
            state[name] = whole.detach().to("cpu", copy=True)
    return state
