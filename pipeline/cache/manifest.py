"""The manifest: which shards hold the samples of one request. Written last; readers start from it."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.index import INDEX_DTYPE, build_index
from pipeline.cache.receipt import Receipt
from pipeline.cache.spec import CacheSpec, canonical_json
from pipeline.object_store.store import ObjectStore


class ShardReference(Config):
    """A shard as the manifest lists it."""

    shard_id: str
    object_key: str
    sha256: str
    size: int  # bytes
    samples: int


class Manifest(Config):
    """A finished set of shards under one numeric specification."""

    manifest_id: str
    dataset: str
    split: str
    spec: CacheSpec
    shards: tuple[ShardReference, ...]
    samples: int
    failed: int
    filtered: int
    index_key: str
    index_sha256: str

    @property
    def cache_key(self) -> str:
        """The key of the numeric specification."""
        return self.spec.key

    @property
    def size(self) -> int:
        """Bytes in all shards."""
        return sum(shard.size for shard in self.shards)


class RequestAnswer(Config):
    """What a recipe's request leads to: the manifest that answers it."""

    cache_key: str
    manifest_id: str
    run_id: str | None = None  # the MLflow run that computed it


def write_manifest(
    store: ObjectStore,
    *,
    spec: CacheSpec,
    dataset: str,
    split: str,
    receipts: Sequence[Receipt],
) -> Manifest:
    """Write index, plain shard list and manifest, the manifest last. Equal receipts, equal objects."""
    index = build_index(receipts).tobytes()
    identity = [spec.key, dataset, split, *(f"{r.shard_id} {r.sha256}" for r in receipts)]
    manifest_id = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:32]
    manifest = Manifest(
        manifest_id=manifest_id,
        dataset=dataset,
        split=split,
        spec=spec,
        shards=tuple(
            ShardReference(
                shard_id=r.shard_id,
                object_key=r.object_key,
                sha256=r.sha256,
                size=r.size,
                samples=len(r.samples),
            )
            for r in receipts
        ),
        samples=len(index) // INDEX_DTYPE.itemsize,
        failed=sum(len(r.left_out_for("failed")) for r in receipts),
        filtered=sum(len(r.left_out_for("filtered")) for r in receipts),
        index_key=layout.index_key(spec.key, manifest_id),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    shard_urls = "".join(f"{store.url}/{r.object_key}\n" for r in receipts)
    store.create(layout.spec_key(spec.key), spec.canonical().encode())
    store.create(manifest.index_key, index)
    store.create(layout.shard_list_key(spec.key, manifest_id), shard_urls.encode())
    store.create(layout.manifest_key(spec.key, manifest_id), manifest.model_dump_json(indent=1).encode())
    return manifest


def read_manifest(store: ObjectStore, *, cache_key: str, manifest_id: str) -> Manifest:
    """The manifest. `UserError` where there is none, or where it is not one of ours."""
    manifest = _read_manifest(store, cache_key=cache_key, manifest_id=manifest_id)
    if manifest is None:
        key = layout.manifest_key(cache_key, manifest_id)
        raise UserError(
            f"there is no manifest {store.url}/{key}: run `ldznet precompute` with this recipe first"
        )
    return manifest


def _read_manifest(store: ObjectStore, *, cache_key: str, manifest_id: str) -> Manifest | None:
    key = layout.manifest_key(cache_key, manifest_id)
    try:
        manifest = Manifest.model_validate_json(store.get(key))
    except KeyError:
        return None
    except ValidationError as error:
        raise UserError(
            f"{store.url}/{key} is not a manifest that this version reads: {error.errors()[0]['msg']}"
        ) from error
    for name in (manifest.index_key, *(shard.object_key for shard in manifest.shards)):
        if not name.startswith(f"{cache_key}/") or ".." in name.split("/"):
            raise UserError(
                f"the manifest {store.url}/{key} names {name!r}, which lies outside its own cache: not reading it"
            )
    return manifest


def read_index(store: ObjectStore, manifest: Manifest) -> NDArray[np.void]:
    """The manifest's index, checked against its hash."""
    try:
        data = store.get(manifest.index_key)
    except KeyError as error:
        raise OSError(
            f"the index {store.url}/{manifest.index_key} is gone, which the manifest names: restore it"
        ) from error
    if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
        raise OSError(
            f"the index {store.url}/{manifest.index_key} is damaged: its SHA-256 is not the manifest's"
        )
    return np.frombuffer(data, dtype=INDEX_DTYPE)


def answer_request(
    store: ObjectStore, request_digest: str, manifest: Manifest, *, run_id: str | None = None
) -> None:
    """Let a recipe's request lead to this manifest."""
    answer = RequestAnswer(cache_key=manifest.cache_key, manifest_id=manifest.manifest_id, run_id=run_id)
    store.put(layout.request_key(request_digest), answer.model_dump_json().encode())


def find_answer(store: ObjectStore, request_digest: str) -> RequestAnswer | None:
    """What answers a request, or None where nothing was computed for it."""
    try:
        body = store.get(layout.request_key(request_digest))
    except KeyError:
        return None
    try:
        return RequestAnswer.model_validate_json(body)
    except ValidationError as error:
        raise UserError(
            f"{store.url}/{layout.request_key(request_digest)} is damaged: remove it and run `ldznet precompute` again"
        ) from error


def find_manifest(store: ObjectStore, request_digest: str) -> Manifest | None:
    """The manifest that answers a request, or None where nothing was computed for it."""
    answer = find_answer(store, request_digest)
    if answer is None:
        return None
    return _read_manifest(store, cache_key=answer.cache_key, manifest_id=answer.manifest_id)
