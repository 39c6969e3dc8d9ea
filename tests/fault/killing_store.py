"""A store that dies at a step of the commit protocol, and writers that take turns in a seeded order."""

import io
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

from pipeline.object_store.files import FileStore
from pipeline.object_store.store import ObjectInfo, ObjectStore

When = Literal["before", "middle", "after"]
WHENS: tuple[When, ...] = ("before", "middle", "after")


class Killed(BaseException):
    """What nobody catches: the writer is gone."""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """Which operation, counted over all writers, is the last; of one writer or of all."""

    operation: int
    when: When
    everyone: bool


@dataclass
class Turns:
    """Lets one writer at a time do one store operation, chosen by a seed whenever all have come to their next."""

    seed: int
    fate: Fate | None = None
    operations: int = 0
    killed_at: str = ""
    _alive: set[int] = field(default_factory=set)
    _waiting: set[int] = field(default_factory=set)
    _chosen: int | None = None
    _over: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret hangs on it
        self._changed = threading.Condition()

    def run(self, store: ObjectStore, writers: list[Callable[[ObjectStore], None]]) -> list[Exception]:
        """Run all writers to their end, whatever it is; what they raised but `Killed`."""
        raised: list[Exception] = []
        self._alive = set(range(len(writers)))

        def live(number: int) -> None:
            try:
                writers[number](KillingStore(store=store, turns=self, writer=number))
            except Killed:
                pass
            except Exception as error:  # noqa: BLE001 - handed to the test
                raised.append(error)
            finally:
                with self._changed:
                    self._alive.remove(number)
                    self._choose()

        threads = [threading.Thread(target=live, args=(number,)) for number in sorted(self._alive)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised

    @contextmanager
    def turn(self, writer: int, what: str) -> Iterator[When | None]:
        """One operation of a writer; yields when it has to die in it."""
        with self._changed:
            self._waiting.add(writer)
            self._choose()
            self._changed.wait_for(lambda: self._chosen == writer)
            if self._over:
                self._done(writer)
                raise Killed
            fatal = self.fate is not None and self.fate.operation == self.operations
            self.operations += 1
            if fatal:
                assert self.fate is not None
                self.killed_at, self._over = f"{self.fate.when} {what}", self.fate.everyone
        try:
            yield self.fate.when if fatal and self.fate else None
        finally:
            with self._changed:
                self._done(writer)

    def _done(self, writer: int) -> None:
        self._waiting.discard(writer)
        self._chosen = None
        self._choose()

    def _choose(self) -> None:
        if self._chosen is None and self._alive and self._waiting >= self._alive:
            self._chosen = self._random.choice(sorted(self._waiting))
            self._changed.notify_all()


@dataclass(frozen=True)
class KillingStore:
    """The store as one writer sees it."""

    store: ObjectStore
    turns: Turns
    writer: int

    @property
    def url(self) -> str:
        return self.store.url

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        return self._do(f"get {key}", lambda: self.store.get(key, at_most=at_most))

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        return self._do(f"get {key}", lambda: self.store.get_range(key, start=start, length=length))

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        self._do(f"get {key}", lambda: self.store.get_range_into(key, start=start, buffers=buffers))

    def put(self, key: str, body: bytes | Path) -> None:
        self._do(f"put {key}", lambda: self.store.put(key, body), key, body)

    def create(self, key: str, body: bytes | Path, *, sha256: str | None = None) -> bool:
        return self._do(f"create {key}", lambda: self.store.create(key, body, sha256=sha256), key, body)

    def replace(self, key: str, body: bytes | Path, *, etag: str) -> bool:
        return self._do(f"replace {key}", lambda: self.store.replace(key, body, etag=etag), key, body)

    def stat(self, key: str) -> ObjectInfo | None:
        return self._do(f"stat {key}", lambda: self.store.stat(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._do(f"list {prefix}", lambda: [*self.store.list(prefix)]))

    def delete(self, key: str) -> None:
        self._do(f"delete {key}", lambda: self.store.delete(key))

    def discard_unfinished(self, *, older_than_s: float) -> int:
        return self.store.discard_unfinished(older_than_s=older_than_s)

    def _do(self, what: str, call: Callable[[], Any], key: str = "", body: bytes | Path = b"") -> Any:
        with self.turns.turn(self.writer, what) as dies:
            if dies == "before":
                raise Killed
            if dies == "middle" and key:
                half_write(self.store, key, body)
            answer = call()
            if dies:
                raise Killed
            return answer


def half_write(store: ObjectStore, key: str, body: bytes | Path) -> None:
    """Write half of the body as a process does that is killed then: nothing tidies up behind it."""
    content = body.read_bytes() if isinstance(body, Path) else body
    if isinstance(store, FileStore):
        folder = store.path(key).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".{uuid4().hex}.partial").write_bytes(content[: len(content) // 2])
        raise Killed
    with tempfile.TemporaryDirectory() as folder:
        dying = DyingFile(folder, "body")
        dying.write_bytes(content)
        store.create(key, dying)
    raise AssertionError("the body ended before its writer did")


class DyingFile(type(Path())):  # type: ignore[misc]
    """A file that is read whole once, for its digest; who sends it dies in the middle."""

    def open(self, mode: str = "r", *arguments: Any, **options: Any) -> BinaryIO:
        stream: BinaryIO = super().open(mode, *arguments, **options)
        if mode != "rb":
            return stream
        content = stream.read()
        stream.close()
        read_before = getattr(self, "_read_before", False)
        self._read_before = True
        return _DyingStream(content) if read_before else io.BytesIO(content)


class _DyingStream(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= len(self.getbuffer()) // 2 > 0 or len(self.getbuffer()) < 2:
            raise Killed
        return super().read(max(1, len(self.getbuffer()) // 2))
