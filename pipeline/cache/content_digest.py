"""Digests of a data set's objects, remembered by size and ETag so that a second run reads nothing."""

import hashlib
import os
import sqlite3
from pathlib import Path

from ldznet.errors import UserError
from pipeline.object_store.store import ObjectStore

MISSING = "missing"


def memory_path() -> Path:
    """Where digests are remembered: `$XDG_CACHE_HOME/ldznet/digests.sqlite`."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ldznet" / "digests.sqlite"


class ContentDigests:
    """SHA-256 of objects by key. Bytes are read again only where size or ETag changed."""

    def __init__(self, *, store: ObjectStore, path: Path | None = None) -> None:
        self._store = store
        self._path = path or memory_path()
        self._session: dict[str, str] = {}
        self._new: dict[str, tuple[int, str, str]] = {}
        self._remembered = self._load()

    def __call__(self, key: str) -> str:
        """The digest of one object. An object that is not there has the digest `missing`, and is quarantined later."""
        if key not in self._session:
            self._session[key] = self._digest(key)
        return self._session[key]

    def save(self) -> None:
        """Remember what was learnt. Losing this file costs time, nothing else."""
        if not self._new:
            return
        with self._connect() as connection:
            rows = [(self._store.url, key, *value) for key, value in self._new.items()]
            connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)
        self._new.clear()

    def _digest(self, key: str) -> str:
        info = self._store.stat(key)
        if info is None:
            return MISSING
        known = self._remembered.get(key)
        if known is not None and known[:2] == (info.size, info.etag):
            return known[2]
        digest = hashlib.sha256(self._store.get(key)).hexdigest()
        self._new[key] = (info.size, info.etag, digest)
        return digest

    def _load(self) -> dict[str, tuple[int, str, str]]:
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT key, size, etag, digest FROM digests WHERE store = ?", (self._store.url,)
            )
            return {key: (size, etag, digest) for key, size, etag, digest in rows}

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
