"""Model folders on an object store: uploaded whole or not at all, downloaded to where they are used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ldznet.errors import UserError
from pipeline.object_store.opening import open_store

SEAL = "model.json"  # written last: without it there is no model
PROVENANCE = "provenance.json"
CARD = "README.md"
_TOLD_ABOUT_IT = frozenset({CARD, PROVENANCE})


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
    store.put(SEAL, json.dumps({"version": version, "files": names, "facts": dict(facts)}).encode())
    if before not in (None, version):
        for info in list(store.list(f"{before}/")):
            store.delete(info.key)


def download_model(url: str, folder: Path) -> dict[str, float]:
    """Fetch the sealed model into a local folder. Returns the figures that it was chosen by.

    Raises:
        UserError: no training has left a model there.
    """
    store = open_store(url)
    try:
        seal = json.loads(store.get(SEAL))
    except KeyError:
        raise UserError(
            f"there is no trained model at {url}: run `ldznet train` with this recipe first"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    # The configuration goes last: it makes the folder a model folder.
    for name in sorted(seal["files"], key=lambda name: name == "config.json"):
        (folder / Path(name).name).write_bytes(store.get(f"{seal['version']}/{name}"))
    facts: dict[str, float] = seal["facts"]
    return facts
