"""Model folders on an object store: uploaded whole or not at all, and so downloaded to where they are used."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from ldznet.errors import UserError
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SEAL = "model.json"  # written last: without it there is no model
PROVENANCE = "provenance.json"
CARD = "README.md"
_TOLD_ABOUT_IT = frozenset({CARD, PROVENANCE})
# What network disks answer on which a folder cannot be locked.
_NO_LOCKS: Final = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


def model_digest(folder: Path) -> str:
    """SHA-256 of a model folder: weights and configuration, not what is told about them (card, provenance)."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name not in _TOLD_ABOUT_IT and not path.name.startswith("."):
            with path.open("rb") as file:
                total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def upload_model(folder: Path, *, url: str, facts: Mapping[str, float]) -> None:
    """Upload a folder's files, then the seal that names them. A better model replaces the one that was there."""
    store = open_store(url)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    version = f"{int(facts['step']):08d}"
    for name in names:
        store.put(f"{version}/{name}", folder / name)
    before = None if store.stat(SEAL) is None else json.loads(store.get(SEAL))["version"]
    seal = {"version": version, "files": names, "digest": model_digest(folder), "facts": dict(facts)}
    store.put(SEAL, json.dumps(seal).encode())
    if before not in (None, version):
        for info in list(store.list(f"{before}/")):
            store.delete(info.key)


def download_model(url: str, folder: Path) -> dict[str, float]:
    """Fetch the sealed model into a local folder. Returns the figures that it was chosen by.

    A folder that holds this very model is left as it is: its card may tell more than the stored one. Another model
    gives way with all that lies in its folder. Killed at any moment, the folder holds the one model or the other, or
    is not there.

    Raises:
        UserError: no training has left a model there.
    """
    store, folder = open_store(url), folder.resolve()  # a link goes on leading to it
    try:
        seal: dict[str, Any] = json.loads(store.get(SEAL))
    except KeyError:
        raise UserError(
            f"there is no trained model at {url}: run `ldznet train` with this recipe first"
        ) from None
    with _scratch_beside(folder) as scratch:
        if not _holds(folder, seal.get("digest")):
            fetched = _fetch(store, seal, scratch / "fetched")
            # Seals of older versions tell no digest.
            if "digest" in seal or not _holds(folder, model_digest(fetched)):
                if folder.exists():
                    folder.rename(scratch / "before")
                fetched.rename(folder)
    facts: dict[str, float] = seal["facts"]
    return facts


def _holds(folder: Path, digest: str | None) -> bool:
    return digest is not None and folder.is_dir() and model_digest(folder) == digest


def _fetch(store: ObjectStore, seal: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir()
    for name in seal["files"]:
        (folder / Path(name).name).write_bytes(store.get(f"{seal['version']}/{name}"))
    return folder


@contextmanager
def _scratch_beside(folder: Path) -> Iterator[Path]:
    """An empty hidden folder on the same disk, gone afterwards. What a killed process left there goes first.

    Processes that want the same one wait for each other.
    """
    scratch = folder.with_name(f".{folder.name}.download")
    lock = _locked(scratch)
    try:
        for left in scratch.iterdir():
            shutil.rmtree(left)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock; the folder is made where there is none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its holder has just finished
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_still(folder, descriptor):
            return descriptor
        os.close(descriptor)


def _is_still(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:  # its holder has removed it
        return False
