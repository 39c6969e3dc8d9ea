"""Objects in an S3 bucket, over boto3, on any server that speaks S3."""

import base64
import errno
import heapq
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from botocore.exceptions import ClientError

from ldznet.errors import UserError
from pipeline.object_store.body import Body, content_md5
from pipeline.object_store.client import ClientSource, NeverReachedError
from pipeline.object_store.faults import DamagedObjectError, UnavailableObjectError
from pipeline.object_store.key import check_key, check_prefix
from pipeline.object_store.multipart import MultipartUpload, Upload
from pipeline.object_store.request_rate import RequestRate
from pipeline.object_store.retries import Retries
from pipeline.object_store.s3_answers import MD5, PLAIN_MD5, object_info, ranged_body, required, whole_body
from pipeline.object_store.s3_errors import (
    FAULTS,
    S3Fault,
    error_code,
    is_damage,
    is_infrastructure,
    status,
    users_mistake,
    without_credentials,
)
from pipeline.object_store.s3_range_body import ranged_body_into
from pipeline.object_store.store import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        GetObjectOutputTypeDef,
        HeadObjectOutputTypeDef,
        ListObjectsV2OutputTypeDef,
        ListObjectsV2RequestTypeDef,
    )

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

WRITER = "writer"  # metadata by which a writer knows its own object again


@dataclass(frozen=True, kw_only=True)
class S3Store:
    """Objects under `s3://bucket/prefix`; credentials, region and endpoint come from the environment.

    A body goes as one PUT up to S3's limit of 5 GiB, streamed: one PUT is atomic and honours its condition.
    Servers do not agree on conditions for uploads in parts: some ignore them, and SeaweedFS 4.48 lets several
    racing completions win. So only `put` goes in parts beyond that size; `create` and `replace` refuse.
    Each body is guarded by its MD5, which the server checks before it shows the object, and which goes with the
    object as metadata for its readers: an ETag is not always one.
    """

    bucket: str
    prefix: str = ""
    page_size: int = 1000  # keys a listing's answer
    largest_put: int = 5 << 30  # bytes
    part_size: int = 64 << 20  # bytes; S3 wants 5 MiB or more
    retries: Retries = field(default_factory=Retries)
    rate: RequestRate = field(default_factory=RequestRate)
    reached: bool = False  # the server has answered this job before: where it does not now, it is away
    _source: ClientSource = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """The client is made at the first use."""
        source = ClientSource(bucket=self.bucket, rate=self.rate, reached=self.reached)
        object.__setattr__(self, "_source", source)

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, without a slash at its end."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        """The whole object. `KeyError` where there is none; `ObjectTooLargeError`, unread, above `at_most` bytes.

        `DamagedObjectError` where its MD5 never is the one that it was written with.
        """
        name, where = self._name(key), f"{self.url}/{key}"

        def read(_: int) -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=name)
            return whole_body(answer, where=where, at_most=at_most, bucket=self.bucket)

        return self._try(key, read)

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        """`length` bytes from `start`. `KeyError` where there is no object; `OSError` where it is shorter."""
        if length == 0:  # which HTTP cannot ask for
            self._require_object(key)
            return b""
        body = self._read_range(key, start, length, lambda answer: ranged_body(answer, start=start))
        if body is None or len(body) != length:
            raise OSError(errno.EIO, f"{self.url}/{key} ends before byte {start + length}")
        return body

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill writable bytes, in their order, with what lies from `start` on; errors as `get_range`'s."""
        length = sum(buffer.nbytes for buffer in buffers)
        if length == 0:
            self._require_object(key)
            return

        def fill(answer: "GetObjectOutputTypeDef") -> int:
            return ranged_body_into(answer, start=start, buffers=buffers)

        if self._read_range(key, start, length, fill) != length:
            raise OSError(errno.EIO, f"{self.url}/{key} ends before byte {start + length}")

    def _read_range(
        self, key: str, start: int, length: int, take: Callable[["GetObjectOutputTypeDef"], Answer]
    ) -> Answer | None:
        """What `take` makes of the answer; None where the object ends before `start`."""
        name, wanted = self._name(key), f"bytes={start}-{start + length - 1}"

        def read(_: int) -> Answer | None:
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=name, Range=wanted)
            except ClientError as error:
                if status(error) == 416:
                    return None
                raise
            return take(answer)

        return self._try(key, read)

    def put(self, key: str, body: bytes | Path) -> None:
        """Write or replace the object, whole or not at all. A `Path` is streamed."""
        if not self._write(key, body):
            raise OSError(errno.EIO, f"{self.url}/{key}: somebody aborted the upload")

    def create(self, key: str, body: bytes | Path, *, sha256: str | None = None) -> bool:
        """Write the object only if there is none (`If-None-Match: *`). False where one was there first.

        Where an answer was lost and the next try finds an object, that is looked at: True if it is our own. A body
        whose SHA-256 is known goes with that in place of its MD5, which takes longer than packing it.
        """
        return self._write(key, body, sha256=sha256, IfNoneMatch="*")

    def replace(self, key: str, body: bytes | Path, *, etag: str) -> bool:
        """Write the object only over the version with this ETag (`If-Match`). False where that is gone."""
        return self._write(key, body, IfMatch=f'"{etag}"')

    def stat(self, key: str) -> ObjectInfo | None:
        """Size, ETag and time, or None where there is no object."""
        name = self._name(key)
        try:
            return self._try(key, lambda _: object_info(key, self._head(name), size="ContentLength"))
        except KeyError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order, fetched page by page.

        Servers differ in their order ("a/b" before or after "a-b"), so folders are walked one by one and put
        in their place; what is held is a page and the folders still to come.
        """
        base = f"{self.prefix}/" if self.prefix else ""
        return self._walk(base + check_prefix(prefix), base)

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens where there is none."""
        name = self._name(key)
        self._try(key, lambda _: self._client.delete_object(Bucket=self.bucket, Key=name))

    def discard_unfinished(self, *, older_than_s: float) -> int:
        """Abort multipart uploads under the prefix that were begun longer ago than this; their number."""
        oldest = datetime.now(UTC) - timedelta(seconds=older_than_s)
        base = f"{self.prefix}/" if self.prefix else ""
        pages = self._client.get_paginator("list_multipart_uploads")
        found = self._try("", lambda _: list(pages.paginate(Bucket=self.bucket, Prefix=base)))
        aborted = 0
        for upload in (upload for page in found for upload in page.get("Uploads", [])):
            if upload["Initiated"] > oldest:
                continue
            aborted += self._abort(upload["Key"], upload["UploadId"])
        return aborted

    def _abort(self, name: str, upload: str) -> bool:
        """Whether the upload was still there to be aborted."""
        try:
            self._try(
                name,
                lambda _: self._client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload),
            )
        except KeyError:
            return False
        return True

    @property
    def _client(self) -> "S3Client":
        return self._source.client()

    def _name(self, key: str) -> str:
        check_key(key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _head(self, name: str) -> "HeadObjectOutputTypeDef":
        try:
            return self._client.head_object(Bucket=self.bucket, Key=name)
        except ClientError as error:
            # A HEAD's answer has no body to tell which mistake it is, a listing's has.
            if status(error) == 403:
                self._client.list_objects_v2(Bucket=self.bucket, Prefix=name, MaxKeys=1)
            elif status(error) == 404:
                self._require_bucket()
            raise

    def _require_object(self, key: str) -> None:
        if self.stat(key) is None:
            raise KeyError(key)

    def _require_bucket(self) -> None:
        """Raise what the server says where it has no such bucket; asked once a process."""
        known = self._source.known_buckets
        if self.bucket not in known:
            self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
            known.add(self.bucket)

    def _write(self, key: str, source: bytes | Path, *, sha256: str | None = None, **condition: str) -> bool:
        """Write with a condition (a header's name in boto3 and its value); False where it does not hold."""
        name, body = self._name(key), Body(source)
        metadata, guard = {WRITER: uuid4().hex}, {}
        if sha256 is not None and body.size <= self.largest_put:
            guard["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
        else:
            digest = body.md5()
            metadata[MD5], guard["ContentMD5"] = digest.hexdigest(), content_md5(digest)
        if body.size > self.largest_put:
            if condition:
                raise UserError(
                    f"{self.url}/{key}: {body.size} bytes are more than one conditional PUT takes "
                    f"({self.largest_put}): write smaller objects"
                )
            return self._write_parts(key, body, metadata)

        def put(number: int) -> bool:
            with body.open() as stream:
                return self._conditionally(
                    key,
                    lambda: self._check_guarded(
                        key,
                        body,
                        guard,
                        self._client.put_object(
                            Bucket=self.bucket,
                            Key=name,
                            Body=stream,
                            Metadata=metadata,
                            **guard,  # type: ignore[arg-type]
                            **condition,  # type: ignore[arg-type]
                        ),
                    ),
                    again=number > 0,
                    body=body,
                    metadata=metadata,
                )

        return self._try(key, put)

    def _check_guarded(
        self, key: str, body: Body, guard: Mapping[str, str], answer: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """A server that knows nothing of SHA-256 has not looked at it, and does not repeat it: look at the ETag."""
        expected = guard.get("ChecksumSHA256")
        if expected is not None and answer.get("ChecksumSHA256") != expected:
            etag = str(answer.get("ETag", "")).strip('"')
            if PLAIN_MD5.fullmatch(etag) and etag != body.md5().hexdigest():
                raise DamagedObjectError(f"{self.url}/{key} was changed on its way to the server")
        return answer

    def _write_parts(self, key: str, body: Body, metadata: dict[str, str]) -> bool:
        upload = MultipartUpload(
            client=self._client,
            bucket=self.bucket,
            key=self._name(key),
            part_size=self.part_size,
            retry=lambda send: self._try(key, lambda _: send()),
        )

        def complete(done: Upload) -> bool:
            return self._try(
                key,
                lambda number: self._conditionally(
                    key,
                    lambda: self._client.complete_multipart_upload(
                        Bucket=self.bucket,
                        Key=self._name(key),
                        UploadId=done.id,
                        MultipartUpload={"Parts": done.parts},
                    ),
                    again=number > 0,
                    body=body,
                    metadata=metadata,
                ),
            )

        return upload.send(body, metadata=metadata, complete=complete)

    def _conditionally(
        self,
        key: str,
        write: Callable[[], Mapping[str, Any]],
        *,
        again: bool,
        body: Body,
        metadata: dict[str, str],
    ) -> bool:
        """True where the write took effect, False where its condition did not hold."""
        try:
            required(write(), "ETag")
        except ClientError as error:
            # 404: If-Match without an object, or an upload in parts that an earlier try has completed.
            refused = status(error) == 412 or error_code(error) in {"NoSuchKey", "NoSuchUpload"}
            if not refused:
                raise
            self._require_bucket()  # without one, some servers answer 412 as well
            return again and self._is_ours(key, body, metadata)
        return True

    def _is_ours(self, key: str, body: Body, metadata: dict[str, str]) -> bool:
        """Whether the object there was written by an earlier try of this very call, whose answer was lost."""
        try:
            found = self._client.head_object(Bucket=self.bucket, Key=self._name(key))
        except ClientError as error:
            if status(error) == 404:
                return False
            raise
        info = object_info(key, found, size="ContentLength")
        if WRITER in found["Metadata"]:
            return found["Metadata"][WRITER] == metadata[WRITER]
        # A server that keeps no metadata: equal bytes are as good.
        return (info.size, info.etag) == (body.size, metadata.get(MD5) or body.md5().hexdigest())

    def _walk(self, start: str, base: str) -> Iterator[ObjectInfo]:
        """Objects whose full name starts with `start`; folders end with `/` and are walked in their turn."""
        held: list[tuple[str, ObjectInfo | None]] = []
        token: str | None = None
        while True:
            page = self._page(start, token)
            last = ""
            for entry in page.get("Contents", []):
                last = max(last, entry["Key"])
                if not entry["Key"].endswith("/"):  # a folder's marker, as some tools leave them
                    info = object_info(entry["Key"].removeprefix(base), entry, size="Size")
                    heapq.heappush(held, (entry["Key"], info))
            for folder in page.get("CommonPrefixes", []):
                last = max(last, folder["Prefix"].rstrip("/"))
                heapq.heappush(held, (folder["Prefix"], None))
            token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            while held and (token is None or held[0][0] <= last):
                name, found = heapq.heappop(held)
                if found is None:
                    yield from self._walk(name, base)
                else:
                    yield found
            if token is None:
                return

    def _page(self, start: str, token: str | None) -> "ListObjectsV2OutputTypeDef":
        wanted: ListObjectsV2RequestTypeDef = {"Bucket": self.bucket, "Prefix": start, "Delimiter": "/"}
        wanted["MaxKeys"] = self.page_size
        if token is not None:
            wanted["ContinuationToken"] = token
        key = start.removeprefix(f"{self.prefix}/")

        def ask(_: int) -> "ListObjectsV2OutputTypeDef":
            page = self._client.list_objects_v2(**wanted)
            required(page, "IsTruncated")
            return page

        return self._try(key, ask)

    def _try(self, key: str, call: Callable[[int], Answer]) -> Answer:
        """Call with the try's number until it answers; a user's mistake or a missing key ends it at once."""
        failure: S3Fault | None = None
        damaged = 0
        for number in self.retries.waits():
            try:
                return call(number)
            except NeverReachedError as error:
                raise UserError(
                    f"no object store answers at {self._endpoint}: start it, or correct AWS_ENDPOINT_URL"
                ) from error
            except FAULTS as error:
                if not is_infrastructure(error):
                    raise self._explained(error, key) from error
                log.debug("try %d of %s/%s: %s", number + 1, self.url, key, type(error).__name__)
                failure = error
                damaged += is_damage(error)
                if damaged >= self.retries.damaged_tries:
                    break
        assert failure is not None, "there is at least one try"
        kind = DamagedObjectError if is_damage(failure) else UnavailableObjectError
        raise kind(f"{self.url}/{key}: no success in {number + 1} tries: {failure}") from failure

    def _explained(self, error: S3Fault, key: str) -> Exception:
        """The exception that the caller is to see."""
        mistake = users_mistake(error, endpoint=self._endpoint, bucket=self.bucket, key=key)
        if mistake is None and isinstance(error, ClientError) and status(error) == 404:
            return KeyError(key)
        return mistake or error

    @property
    def _endpoint(self) -> str:
        return without_credentials(self._client.meta.endpoint_url)
