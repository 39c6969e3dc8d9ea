"""A manifest's index mapped into memory: 40 bytes a sample, of which only what is read takes memory."""

import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from typing import IO, Final

import numpy as np

from pipeline.cache.index import INDEX_DTYPE, Index
from pipeline.cache.manifest import Manifest, Part, read_part
from pipeline.object_store.files import FileStore
from pipeline.object_store.store import ObjectStore

_PIECE: Final = 64 << 20  # bytes a read
_SMALL: Final = 16 << 20  # bytes that are held rather than mapped


def map_index(store: ObjectStore, manifest: Manifest) -> Index:
    """The manifest's index, checked against its hash."""
    return _map_part(store, manifest, manifest.index)


def map_column_indexes(store: ObjectStore, manifest: Manifest) -> tuple[Index, ...]:
    """The indexes of further blocks, row by row beside the samples' own."""
    return tuple(_map_part(store, manifest, part) for part in manifest.column_indexes)


def _map_part(store: ObjectStore, manifest: Manifest, part: Part) -> Index:
    """In a folder the file itself is mapped; from elsewhere a copy that has no name, and so goes with the process."""
    size = manifest.samples * INDEX_DTYPE.itemsize
    if size <= _SMALL:
        return np.frombuffer(read_part(store, part, at_most=size), dtype=INDEX_DTYPE)
    if isinstance(store, FileStore):
        with _open(store, part) as file:
            return _mapped(file, store, part, size)
    with tempfile.TemporaryFile() as file:
        for piece in _pieces(store, part, size):
            file.write(piece)
        file.flush()
        return _mapped(file, store, part, size)


def _open(store: FileStore, part: Part) -> IO[bytes]:
    try:
        return store.path(part.key).open("rb")
    except FileNotFoundError as error:
        raise OSError(f"{store.url}/{part.key} is gone, which the manifest names: restore it") from error


def _pieces(store: ObjectStore, part: Part, size: int) -> Iterator[bytes]:
    try:
        for start in range(0, size, _PIECE):
            yield store.get_range(part.key, start=start, length=min(_PIECE, size - start))
    except KeyError as error:
        raise OSError(f"{store.url}/{part.key} is gone, which the manifest names: restore it") from error


def _mapped(file: IO[bytes], store: ObjectStore, part: Part, size: int) -> Index:
    damaged = OSError(f"{store.url}/{part.key} is damaged: its SHA-256 is not the manifest's")
    if file.seek(0, 2) != size:
        raise damaged
    mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    if hashlib.sha256(mapped).hexdigest() != part.sha256:
        raise damaged
    return np.frombuffer(mapped, dtype=INDEX_DTYPE)
