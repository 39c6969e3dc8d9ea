"""Bodies larger than one PUT may have: uploaded in parts, visible all at once or not at all."""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from pipeline.object_store.body import Body, content_md5
from pipeline.object_store.s3_answers import required

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

log = logging.getLogger(__name__)

THREADS = 4
MOST_PARTS = 10_000  # S3's limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """An upload whose parts have all arrived."""

    id: str
    parts: "list[CompletedPartTypeDef]"


@dataclass(frozen=True, kw_only=True)
class MultipartUpload:
    """One upload in parts. Parts are tried again one by one; whatever else fails aborts the whole."""

    client: "S3Client"
    bucket: str
    key: str
    part_size: int  # bytes; raised where the body would have too many parts
    retry: Callable[[Callable[[], Any]], Any]

    def send(self, body: Body, *, metadata: dict[str, str], complete: Callable[[Upload], bool]) -> bool:
        """Upload the parts, then let `complete` finish; its answer.

        The upload is aborted where anything fails or `complete` answers False, so that no parts are left.
        """
        upload_id = self.retry(
            lambda: required(
                self.client.create_multipart_upload(Bucket=self.bucket, Key=self.key, Metadata=metadata),
                "UploadId",
            )
        )
        finished = False
        try:
            parts = self._send_parts(upload_id, body)
            finished = complete(Upload(id=upload_id, parts=parts))
        finally:
            if not finished:
                self._abort(upload_id)
        return finished

    def _send_parts(self, upload: str, body: Body) -> "list[CompletedPartTypeDef]":
        size = body.size
        length = max(self.part_size, -(-size // MOST_PARTS))
        with ThreadPoolExecutor(THREADS, thread_name_prefix="multipart") as pool:
            sent = [
                pool.submit(self._send_part, upload, number, body.part, start, length)
                for number, start in enumerate(range(0, size, length), start=1)
            ]
            try:
                return [future.result() for future in sent]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _send_part(
        self, upload: str, number: int, part: Callable[..., bytes], start: int, length: int
    ) -> "CompletedPartTypeDef":
        piece = part(start=start, length=length)
        digest = content_md5(hashlib.md5(piece, usedforsecurity=False))
        etag = self.retry(
            lambda: required(
                self.client.upload_part(
                    Bucket=self.bucket,
                    Key=self.key,
                    UploadId=upload,
                    PartNumber=number,
                    Body=piece,
                    ContentMD5=digest,
                ),
                "ETag",
            )
        )
        return {"PartNumber": number, "ETag": etag}

    def _abort(self, upload: str) -> None:
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.key, UploadId=upload)
        except (BotoCoreError, ClientError) as error:
            # What failed before is what the caller must hear; the parts left are for `discard_unfinished`.
            log.warning("upload of %s could not be aborted: %s", self.key, type(error).__name__)
