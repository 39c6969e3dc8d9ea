"""Digests of a data set's objects, remembered by size and ETag so that a second run reads nothing."""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from ldznet.errors import UserError
from pipeline.datasets.sample import MAX_OBJECT_BYTES, Sample
from pipeline.object_store.store import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)

MISSING = "missing"
TOO_LARGE = "too large"
_AHEAD = 4096  # samples
_LIST_FROM = 256  # objects of one folder: from so many on, one listing is cheaper than a look at each
_SESSION = 65_536  # digests held in memory
_AT_ONCE = 16  # objects read


def absent(why: str, key: str) -> str:
    """In place of the digest of an object that has no content: others that lack it too are not the same."""
    return f"{why}:{key}"


def memory_path() -> Path:
    """Where digests are remembered: `$XDG_CACHE_HOME/ldznet/digests.sqlite`."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ldznet" / "digests.sqlite"


class ContentDigests:
    """SHA-256 of objects by key. Bytes are read again only where size or ETag changed.

    Memory stays at some ten megabytes, however large the data set is: the rest lies in SQLite.
    """

    def __init__(self, *, store: ObjectStore, path: Path | None = None) -> None:
        self._store = store
        self._path = path or memory_path()
        self._session: dict[str, str] = {}
        self._new: dict[str, tuple[int, str, str]] = {}
        self._listings = _Listings(store)
        self._memory = self._connect()

    def __call__(self, key: str) -> str:
        """The digest of one object. One that is not there has `missing:KEY`, and is quarantined later."""
        if key not in self._session:
            self._learn([key])
        return self._session[key]

    def ahead(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples again, the digests of their objects learnt before, many at once."""
        iterator = iter(samples)
        while chunk := list(islice(iterator, _AHEAD)):
            wanted = {key: None for sample in chunk for key in (sample.image, *sample.mask.objects())}
            if len(self._session) > _SESSION:
                self._session.clear()
            self._learn([key for key in wanted if key not in self._session])
            yield from chunk

    def save(self) -> None:
        """Remember what was learnt. Losing this file costs time, nothing else."""
        rows = [(self._store.url, key, *value) for key, value in self._new.items()]
        try:
            with self._memory:
                self._memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            logger.warning("digests of the data set are not remembered in %s: %s", self._path, error)
        self._new.clear()

    def _learn(self, keys: Sequence[str]) -> None:
        found = self._listings.look(keys)
        remembered = self._remembered(keys)
        unread = []
        for key in keys:
            info, known = found.get(key), remembered.get(key)
            if info is None:
                self._session[key] = absent(MISSING, key)
            elif info.size > MAX_OBJECT_BYTES:  # no image or mask: not read, and quarantined later
                self._session[key] = absent(TOO_LARGE, key)
            elif known is not None and known[:2] == (info.size, info.etag):
                self._session[key] = known[2]
            else:
                unread.append(info)
        if len(unread) > 1:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="digests") as pool:
                self._note(unread, pool.map(self._read, unread))
        else:
            self._note(unread, map(self._read, unread))

    def _note(self, infos: Iterable[ObjectInfo], digests: Iterable[str]) -> None:
        for info, digest in zip(infos, digests, strict=True):
            self._session[info.key] = digest
            if digest != absent(MISSING, info.key):
                self._new[info.key] = (info.size, info.etag, digest)
            if len(self._new) > _SESSION:
                self.save()

    def _read(self, info: ObjectInfo) -> str:
        try:
            return hashlib.sha256(self._store.get(info.key)).hexdigest()
        except KeyError:  # deleted since it was listed
            return absent(MISSING, info.key)

    def _remembered(self, keys: Sequence[str]) -> dict[str, tuple[int, str, str]]:
        known: dict[str, tuple[int, str, str]] = {}
        for part in _parts(keys):
            marks = ",".join("?" * len(part))
            try:
                rows = self._memory.execute(
                    f"SELECT key, size, etag, digest FROM digests WHERE store = ? AND key IN ({marks})",  # noqa: S608 - marks alone
                    (self._store.url, *part),
                ).fetchall()
            except sqlite3.Error as error:
                logger.warning("digests of %s cannot be read, so objects are: %s", self._path, error)
                break
            known |= {key: (size, etag, digest) for key, size, etag, digest in rows}
        return known | {key: self._new[key] for key in keys if key in self._new}

    def _connect(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=60)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS digests "
                "(store TEXT, key TEXT, size INTEGER, etag TEXT, digest TEXT, PRIMARY KEY (store, key))"
            )
        except (OSError, sqlite3.DatabaseError) as error:
            raise UserError(
                f"digests cannot be remembered in {self._path}: {error}; set XDG_CACHE_HOME"
            ) from error
        return connection


class _Listings:
    """Sizes and ETags: asked one by one where few are wanted, from one listing where many of a folder are."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._folders: set[str] = set()
        self._database: sqlite3.Connection | None = None

    def look(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        """What is known of those keys that are there."""
        by_folder: dict[str, list[str]] = {}
        for key in keys:
            by_folder.setdefault(key.rpartition("/")[0], []).append(key)
        found: dict[str, ObjectInfo] = {}
        for folder, wanted in by_folder.items():
            if folder not in self._folders and folder and len(wanted) >= _LIST_FROM:
                self._list(folder)
            infos = self._listed(wanted) if folder in self._folders else map(self._store.stat, wanted)
            found |= {info.key: info for info in infos if info is not None}
        return found

    def _list(self, folder: str) -> None:
        if self._database is None:
            # An empty name is a temporary database on disk that SQLite removes itself.
            self._database = sqlite3.connect("")
            self._database.execute(
                "CREATE TABLE listed (key TEXT PRIMARY KEY, size INTEGER, etag TEXT) WITHOUT ROWID"
            )
        rows = ((info.key, info.size, info.etag) for info in self._store.list(f"{folder}/"))
        self._database.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?, ?)", rows)
        self._folders.add(folder)

    def _listed(self, keys: Sequence[str]) -> Iterator[ObjectInfo]:
        assert self._database is not None
        for part in _parts(keys):
            marks = ",".join("?" * len(part))
            rows = self._database.execute(
                f"SELECT key, size, etag FROM listed WHERE key IN ({marks})",  # noqa: S608 - marks alone
                part,
            )
            yield from (ObjectInfo(key=key, size=size, etag=etag, modified=0) for key, size, etag in rows)


def _parts(keys: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    """Few enough for one statement of SQLite."""
    return (keys[start : start + size] for start in range(0, len(keys), size))
