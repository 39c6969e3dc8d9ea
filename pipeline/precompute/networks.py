"""The frozen networks behind one thread that feeds the device, for all the shards that a worker is at.

One thread, because threads, streams, `no_grad` and compiled graphs are a thread's own: all passes see the same, in
whatever order shards hand them in. A pass is a pure function of its batch, so the order changes no byte: those of the
elder shard go first (see `TurnThread`). While a pass runs here, the shards' own threads decode, pack, hash and upload.
"""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from pipeline.precompute.turns import TurnThread

if TYPE_CHECKING:
    from concurrent.futures import Future

_Key = TypeVar("_Key")
Step = Callable[[FrozenLDM], Mapping[_Key, Tensor]]


class Pending(Generic[_Key]):
    """A pass that was handed in; `result()` waits for it."""

    def __init__(self, future: "Future[_OnItsWay[_Key]]") -> None:
        self._future = future

    def result(self) -> dict[_Key, Tensor]:
        """Its tensors on the host. What the pass raised is raised here."""
        return self._future.result().wait()


class Passes:
    """Passes of one shard. Another's that asked for its own earlier go before them."""

    def __init__(self, networks: "Networks", *, turn: int) -> None:
        self._networks, self._turn = networks, turn

    @property
    def ldm(self) -> FrozenLDM:
        """The frozen LDM."""
        return self._networks.ldm

    @property
    def on_gpu(self) -> bool:
        """Whether batches should lie in pinned memory."""
        return self._networks.on_gpu

    def submit(self, step: "Step[_Key]") -> "Pending[_Key]":
        """Hand in a pass: a function of the LDM that gives tensors by name."""
        return self._networks.submit(step, turn=self._turn)


class Networks:
    """Passes of the frozen LDM, one after another, results on the host."""

    def __init__(self, ldm: FrozenLDM, *, threads: int | None = None) -> None:
        """Start the thread.

        Args:
            ldm: the frozen LDM.
            threads: CPU threads for the networks; None leaves them as they are here.
        """
        self.ldm = ldm
        threads = threads or torch.get_num_threads()
        self._thread = TurnThread("networks", begin=partial(torch.set_num_threads, threads))
        self._copies = _SideStream(ldm.device) if ldm.device.type == "cuda" else None
        self._busy_s = 0.0
        self._lock = threading.Lock()

    @property
    def on_gpu(self) -> bool:
        """Whether batches should lie in pinned memory."""
        return self._copies is not None

    @property
    def busy_s(self) -> float:
        """Seconds that the device has worked on passes whose results were taken."""
        with self._lock:
            return self._busy_s

    def passes(self) -> Passes:
        """Those of a shard that begins now."""
        return Passes(self, turn=self._thread.next_turn())

    def submit(self, step: "Step[_Key]", *, turn: int) -> "Pending[_Key]":
        """Hand in a pass of a turn; see `passes`."""
        return Pending(self._thread.submit(turn, partial(self._run, step)))

    @torch.no_grad()
    def _run(self, step: "Step[_Key]") -> "_OnItsWay[_Key]":
        if self._copies is not None:
            return self._copies.run(self.ldm, step, self._was_busy)
        started = time.perf_counter()
        tensors = dict(step(self.ldm))
        self._was_busy(time.perf_counter() - started)
        return _OnItsWay(tensors)

    def _was_busy(self, seconds: float) -> None:
        with self._lock:
            self._busy_s += seconds

    def close(self) -> None:
        """End the thread; passes not begun are dropped."""
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _OnItsWay(Generic[_Key]):
    """Tensors on the host, or on their way there."""

    def __init__(self, tensors: dict[_Key, Tensor], arrived: Callable[[], None] | None = None) -> None:
        self._tensors, self._arrived = tensors, arrived

    def wait(self) -> dict[_Key, Tensor]:
        if self._arrived is not None:
            self._arrived()
            self._arrived = None
        return self._tensors


class _SideStream:
    """Copies results of a GPU to pinned memory beside the next pass. Passes are launched without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)

    def run(self, ldm: FrozenLDM, step: Step[_Key], was_busy: Callable[[float], None]) -> _OnItsWay[_Key]:
        with torch.cuda.device(self._device):
            return self._run(ldm, step, was_busy)

    def _run(self, ldm: FrozenLDM, step: Step[_Key], was_busy: Callable[[float], None]) -> _OnItsWay[_Key]:
        main = torch.cuda.current_stream(self._device)
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record(main)
        # Contiguous before the copy: one stretch of memory on either side, whatever the convolutions' layout.
        tensors = {name: tensor.contiguous() for name, tensor in step(ldm).items()}
        ended.record(main)
        copied = torch.cuda.Event(blocking=True)  # who waits sleeps
        self._stream.wait_stream(main)
        host: dict[_Key, Tensor] = {}
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)  # its memory is free again when the copy is done
            copied.record(self._stream)

        def arrived() -> None:
            copied.synchronize()
            was_busy(began.elapsed_time(ended) / 1000)

        return _OnItsWay(host, arrived)
