"""Brings checkpoints to their store while training goes on: one at a time.

A rank copies its part to host memory (training waits for that alone), then a thread writes it to local disk, digests
and uploads it. Once the ranks have told each other, after some step, that all parts are there, rank 0's thread seals
the checkpoint. So the threads need no collective of their own, and all ranks see a fault after the same step.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.held_folder import held_folder, sweep_folders
from pipeline.training import ranks
from pipeline.training.checkpoint import Snapshot
from pipeline.training.checkpoint_store import SCRATCH, CheckpointStore


class CheckpointUploadError(RuntimeError):
    """A checkpoint did not reach its store; on the rank whose part it was, the cause is chained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A checkpoint that has become visible."""

    step: int
    location: str
    seconds: float  # from the snapshot on


class CheckpointUpload:
    """The one checkpoint that is on its way, if any. All ranks make the same calls after the same steps."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._phase: Literal["idle", "parts", "seal"] = "idle"
        self._task: _Task | None = None
        self._name, self._step, self._world, self._began = "", 0, 1, 0.0
        sweep_folders(SCRATCH)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return self._phase == "idle"

    @property
    def busy(self) -> bool:
        """Whether this rank's thread still works."""
        return self._task is not None and not self._task.done

    @property
    def failed(self) -> bool:
        """Whether this rank's thread met a fault."""
        return self._task is not None and self._task.error is not None

    def start(self, snapshot: Snapshot) -> None:
        """Begin to bring a snapshot to the store. The one before must be there."""
        assert self.idle, "one at a time"
        self._name, self._step, self._world = snapshot.name, snapshot.progress.step, snapshot.world
        self._began = time.monotonic()
        self._phase, self._task = "parts", _Task(lambda: self._bring(snapshot))

    def advance(self, *, busy: int, failed: int) -> Stored | None:
        """Take the next step of the way, given how many ranks are `busy` and have `failed`; what became visible.

        Raises:
            CheckpointUploadError: On every rank, where one of them failed.
        """
        if failed:
            cause = None if self._task is None else self._task.error
            whose = "another rank" if cause is None else "this rank"
            raise CheckpointUploadError(
                f"the checkpoint of step {self._step} did not reach its store: {whose}: {cause or 'see its log'}"
            ) from cause
        if busy or self.idle:
            return None
        if self._phase == "parts":
            first = ranks.rank() == 0
            self._task = _Task(lambda: self._store.seal(self._name, world=self._world)) if first else None
            self._phase = "seal"
            return None
        self._phase, self._task = "idle", None
        location, seconds = self._store.location(self._name), time.monotonic() - self._began
        return Stored(step=self._step, location=location, seconds=seconds)

    def settle(self) -> Stored | None:
        """Wait until nothing is on its way; what became visible meanwhile. Collective."""
        stored = None
        while not self.idle:
            if self._task is not None:
                self._task.wait()
            busy, failed = ranks.count(self.busy, self.failed)
            stored = self.advance(busy=busy, failed=failed)
        return stored

    def _bring(self, snapshot: Snapshot) -> None:
        with held_folder(SCRATCH) as folder:
            snapshot.write(folder)
            snapshot.tensors.clear()  # the host's memory is free again
            self._store.upload(folder, snapshot.name, rank=snapshot.rank)


class _Task:
    """Work in a thread that ends with the process."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks
            self.error = error
