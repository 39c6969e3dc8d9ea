"""The manifest: which shards hold the samples of one request. Written last; readers start from it."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard, ShardReference
from pipeline.cache.index import INDEX_DTYPE, Index, empty_rows, join_rows
from pipeline.cache.receipt import Environment, LeftOut
from pipeline.cache.sealed import BrokenSealError, DamagedDocumentError, seal, unseal
from pipeline.cache.spec import CacheSpec, canonical_json
from pipeline.object_store.faults import ObjectTooLargeError, UnavailableObjectError
from pipeline.object_store.store import ObjectStore

logger = logging.getLogger(__name__)

_LARGEST_DOCUMENT: Final = 2**20  # bytes; a specification or a request has a few thousand
_LARGEST_MANIFEST: Final = 2**30  # bytes; half a thousand a shard
_LARGEST_LEFT_OUT: Final = 2**16  # bytes; a line has a few hundred


class Part(Config):
    """An object that belongs to a manifest."""

    key: str
    sha256: str


class Manifest(Config):
    """A finished set of shards that answers one numeric specification.

    A shard may lie under another specification, from which this one differs in blocks alone; what it lacks lies in
    its `columns`. Nothing is ever copied.
    """

    manifest_id: str
    dataset: str
    split: str
    spec: CacheSpec
    shards: tuple[ShardReference, ...]
    environments: tuple[Environment, ...]  # what computed them; a shard names its own by position
    samples: int
    failed: int
    filtered: int
    index: Part
    column_indexes: tuple[Part, ...] = ()
    left_out: Part

    @property
    def cache_key(self) -> str:
        """The key of the numeric specification."""
        return self.spec.key

    @property
    def size(self) -> int:
        """Bytes in all shards, columns included."""
        return sum(shard.size + sum(column.size for column in shard.columns) for shard in self.shards)

    @property
    def object_keys(self) -> tuple[str, ...]:
        """Every object that the manifest names, itself not counted."""
        shards = [part.object_key for shard in self.shards for part in (shard, *shard.columns)]
        parts = [self.index.key, *(part.key for part in self.column_indexes), self.left_out.key]
        return (*shards, *parts, layout.shard_list_key(self.cache_key, self.manifest_id))


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
    shards: Sequence[CommittedShard],
) -> Manifest:
    """Write indexes, plain shard list and manifest, the manifest last. Equal shards, equal objects."""
    environments = tuple(dict.fromkeys(_as_key(one) for shard in shards for one in shard.environments))
    references = tuple(_numbered(shard, environments) for shard in shards)
    identity = [spec.key, dataset, split, *(shard.model_dump(mode="json") for shard in references)]
    manifest_id = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:32]
    left_out = [member for shard in shards for member in shard.left_out]
    shard_urls = "".join(f"{store.url}/{shard.object_key}\n" for shard in references)

    def write(key: str, body: bytes) -> Part:
        part = Part(key=key, sha256=hashlib.sha256(body).hexdigest())
        # What stands there is of a run that was interrupted, or of one beside us: the same, or damaged.
        if not store.create(key, body) and not is_sound_part(store, part, at_most=len(body)):
            store.put(key, body)
        return part

    store.create(layout.spec_key(spec.key), spec.canonical().encode())
    store.create(layout.shard_list_key(spec.key, manifest_id), shard_urls.encode())
    index = join_rows([shard.rows for shard in shards])
    manifest = Manifest(
        manifest_id=manifest_id,
        dataset=dataset,
        split=split,
        spec=spec,
        shards=references,
        environments=tuple(Environment.model_validate_json(text) for text in environments),
        samples=len(index),
        failed=sum(member.why == "failed" for member in left_out),
        filtered=sum(member.why == "filtered" for member in left_out),
        index=write(layout.index_key(spec.key, manifest_id), index.tobytes()),
        column_indexes=tuple(
            write(layout.index_key(spec.key, manifest_id, column=column), rows.tobytes())
            for column, rows in enumerate(_column_rows(shards))
        ),
        left_out=write(layout.left_out_key(spec.key, manifest_id), _left_out_lines(shards)),
    )
    store.create(layout.manifest_key(spec.key, manifest_id), seal(manifest))
    return manifest


def _numbered(shard: CommittedShard, environments: Sequence[str]) -> ShardReference:
    """The reference, with the positions of its environments in the manifest's list."""
    own, *others = (environments.index(_as_key(one)) for one in shard.environments)
    columns = tuple(
        column.model_copy(update={"environment": number})
        for column, number in zip(shard.reference.columns, others, strict=True)
    )
    return shard.reference.model_copy(update={"environment": own, "columns": columns})


def _as_key(environment: Environment) -> str:
    return canonical_json(environment.model_dump(mode="json"))


def _column_rows(shards: Sequence[CommittedShard]) -> Iterator[Index]:
    for column in range(max((len(shard.column_rows) for shard in shards), default=0)):
        yield join_rows(
            [
                shard.column_rows[column] if column < len(shard.column_rows) else empty_rows(shard.rows)
                for shard in shards
            ]
        )


def _left_out_lines(shards: Sequence[CommittedShard]) -> bytes:
    lines = [
        json.dumps({"shard": number} | member.model_dump(mode="json"), sort_keys=True) + "\n"
        for number, shard in enumerate(shards)
        for member in shard.left_out
    ]
    return "".join(lines).encode()


def read_manifest(store: ObjectStore, *, cache_key: str, manifest_id: str) -> Manifest:
    """The manifest. `UserError` where there is none, or where it is not one of ours."""
    manifest = _read_manifest(store, cache_key=cache_key, manifest_id=manifest_id)
    if manifest is None:
        key = layout.manifest_key(cache_key, manifest_id)
        raise DamagedDocumentError(
            f"there is no manifest {store.url}/{key}: run `ldznet precompute` with this recipe first"
        )
    return manifest


def list_manifests(store: ObjectStore, cache_key: str) -> Iterator[Manifest]:
    """Every manifest of one specification that can be read. A damaged one is told in the log, and is another's care."""
    prefix = layout.manifest_prefix(cache_key)
    for info in store.list(prefix):
        if info.key.endswith(".json"):
            manifest_id = info.key.removeprefix(prefix).removesuffix(".json")
            try:
                manifest = _read_manifest(store, cache_key=cache_key, manifest_id=manifest_id)
            except DamagedDocumentError as error:
                logger.warning("left out: %s", error)
                continue
            if manifest is not None:
                yield manifest


def list_specs(store: ObjectStore) -> Iterator[CacheSpec]:
    """Every numeric specification that the cache holds something of, as far as this version reads them."""
    for info in store.list(layout.SPEC_PREFIX):
        try:
            spec = CacheSpec.model_validate_json(store.get(info.key, at_most=_LARGEST_DOCUMENT))
        except UserError:  # the store refuses; it is a ValueError too
            raise
        except (KeyError, ValueError):  # gone since, or of another version
            continue
        if layout.spec_key(spec.key) == info.key:
            yield spec


def _read_manifest(store: ObjectStore, *, cache_key: str, manifest_id: str) -> Manifest | None:
    key = layout.manifest_key(cache_key, manifest_id)
    try:
        manifest = unseal(Manifest, store.get(key, at_most=_LARGEST_MANIFEST))
    except KeyError:
        return None
    except BrokenSealError as error:
        raise DamagedDocumentError(
            f"{store.url}/{key} is not a manifest that this version reads: {error}; "
            "`ldznet precompute RECIPE --repair` with the recipe that it answers writes it anew"
        ) from error
    if (manifest.manifest_id, manifest.cache_key) != (manifest_id, cache_key):
        raise DamagedDocumentError(f"{store.url}/{key} is the manifest of something else: remove it")
    own = layout.manifest_prefix(cache_key)
    for name in manifest.object_keys:
        if not layout.is_shard_key(name) and not (name.startswith(own) and "/" not in name.removeprefix(own)):
            raise DamagedDocumentError(
                f"the manifest {store.url}/{key} names {name!r}, which is no part of a cache: not reading it"
            )
    return manifest


def read_index(store: ObjectStore, manifest: Manifest) -> Index:
    """The manifest's index, checked against its hash."""
    return np.frombuffer(read_part_of(store, manifest, manifest.index), dtype=INDEX_DTYPE)


def read_column_indexes(store: ObjectStore, manifest: Manifest) -> tuple[Index, ...]:
    """The indexes of further blocks, row by row beside the samples' own."""
    parts = (read_part_of(store, manifest, part) for part in manifest.column_indexes)
    return tuple(np.frombuffer(part, dtype=INDEX_DTYPE) for part in parts)


def read_part_of(store: ObjectStore, manifest: Manifest, part: Part) -> bytes:
    """One of a manifest's own parts, no larger than what the manifest counts.

    Raises:
        OSError: it is gone or damaged.
    """
    return read_part(store, part, at_most=largest_size(manifest, part))


def largest_size(manifest: Manifest, part: Part) -> int:
    """Bytes that a part may have, by what the manifest counts."""
    if part == manifest.left_out:
        return (manifest.failed + manifest.filtered) * _LARGEST_LEFT_OUT
    return manifest.samples * INDEX_DTYPE.itemsize


def read_left_out(store: ObjectStore, manifest: Manifest) -> Iterator[tuple[int, LeftOut]]:
    """Every member that the manifest's shards left out, with the shard's position."""
    for line in read_part_of(store, manifest, manifest.left_out).splitlines():
        member = json.loads(line)
        yield member.pop("shard"), LeftOut.model_validate(member)


def committed_shards(store: ObjectStore, manifest: Manifest) -> Iterator[CommittedShard]:
    """The manifest's shards one by one, as another manifest takes them up. Reads indexes, no receipts."""
    index, columns = read_index(store, manifest), read_column_indexes(store, manifest)
    left_out: dict[int, list[LeftOut]] = {}
    for number, member in read_left_out(store, manifest):
        left_out.setdefault(number, []).append(member)
    ends = np.cumsum([shard.samples for shard in manifest.shards])
    for number, (shard, end) in enumerate(zip(manifest.shards, ends.tolist(), strict=True)):
        rows = slice(end - shard.samples, end)
        yield CommittedShard(
            reference=shard,
            rows=index[rows],
            column_rows=tuple(column[rows] for column in columns[: len(shard.columns)]),
            left_out=tuple(left_out.get(number, ())),
            environment=manifest.environments[shard.environment],
            column_environments=tuple(manifest.environments[one.environment] for one in shard.columns),
        )


def read_part(store: ObjectStore, part: Part, *, at_most: int) -> bytes:
    """An object of a manifest, checked against its hash.

    Raises:
        OSError: it is gone or damaged.
    """
    try:
        data = store.get(part.key, at_most=at_most)
    except KeyError as error:
        raise OSError(f"{store.url}/{part.key} is gone, which the manifest names: restore it") from error
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise OSError(f"{store.url}/{part.key} is damaged: its SHA-256 is not the manifest's")
    return data


def is_sound_part(store: ObjectStore, part: Part, *, at_most: int) -> bool:
    """Whether an object of a manifest is there, unchanged."""
    try:
        read_part(store, part, at_most=at_most)
    except UnavailableObjectError:
        raise
    except OSError:
        return False
    return True


def answer_request(
    store: ObjectStore, request_digest: str, manifest: Manifest, *, run_id: str | None = None
) -> None:
    """Let a recipe's request lead to this manifest."""
    answer = RequestAnswer(cache_key=manifest.cache_key, manifest_id=manifest.manifest_id, run_id=run_id)
    store.put(layout.request_key(request_digest), seal(answer))


def find_answer(store: ObjectStore, request_digest: str) -> RequestAnswer | None:
    """What answers a request, or None where nothing was computed for it."""
    key = layout.request_key(request_digest)
    try:
        return read_answer(store, key)
    except KeyError:
        return None
    except BrokenSealError as error:
        raise DamagedDocumentError(
            f"{store.url}/{key} is damaged: remove it and run `ldznet precompute` again"
        ) from error


def read_answer(store: ObjectStore, key: str) -> RequestAnswer:
    """What lies under a request's key. `KeyError` where nothing does, `BrokenSealError` where it is damaged."""
    try:
        return unseal(RequestAnswer, store.get(key, at_most=_LARGEST_DOCUMENT))
    except ObjectTooLargeError as error:
        raise BrokenSealError(str(error)) from error


def find_manifest(store: ObjectStore, request_digest: str) -> Manifest | None:
    """The manifest that answers a request, or None where nothing was computed for it."""
    answer = find_answer(store, request_digest)
    if answer is None:
        return None
    return _read_manifest(store, cache_key=answer.cache_key, manifest_id=answer.manifest_id)
