"""Is what S3 answered what the object is? Bodies by length and MD5, ranges by their place, headers by being there."""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.object_store.faults import ObjectTooLargeError
from pipeline.object_store.s3_errors import BrokenAnswerError
from pipeline.object_store.store import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

MD5 = "md5"  # metadata that vouches for the body where the ETag does not

PLAIN_MD5 = re.compile(r"[0-9a-f]{32}")
_EXPRESS_BUCKET = "--x-s3"  # how names of S3 Express buckets end; their ETags are no digests


def whole_body(answer: "GetObjectOutputTypeDef", *, where: str, at_most: int | None, bucket: str) -> bytes:
    """The body of a GET without a range, checked.

    Raises:
        ObjectTooLargeError: it has more than `at_most` bytes; none was read.
        BrokenAnswerError: it is not what the server holds.
    """
    with answer["Body"] as raw:
        del raw  # the raw stream, which does not notice a body cut short
        size, etag = required(answer, "ContentLength"), required(answer, "ETag")
        if at_most is not None and size > at_most:
            raise ObjectTooLargeError.of(where, size=size, at_most=at_most)
        body = answer["Body"].read()
    expected = answer.get("Metadata", {}).get(MD5) or _md5_in(etag, answer, bucket)
    if expected is not None and hashlib.md5(body, usedforsecurity=False).hexdigest() != expected:
        raise BrokenAnswerError(f"its MD5 is not {expected}")
    return body


def ranged_body(answer: "GetObjectOutputTypeDef", *, start: int) -> bytes:
    """The body of a GET of a range that begins at `start`, which may be shorter than asked for.

    Raises:
        BrokenAnswerError: it is another range, or the whole.
    """
    with answer["Body"] as raw:
        del raw
        check_range(answer, start=start)
        return answer["Body"].read()


def check_range(answer: Mapping[str, Any], *, start: int) -> None:
    """Raise where the answer is not of a range that begins there: another, or the whole."""
    if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
        raise BrokenAnswerError("the server ignored the range asked for")


def object_info(key: str, answer: Mapping[str, Any], *, size: str) -> ObjectInfo:
    """What a HEAD or a listing's entry tells; `size` is its word for the length."""
    return ObjectInfo(
        key=key,
        size=required(answer, size),
        etag=required(answer, "ETag").strip('"'),
        modified=required(answer, "LastModified").timestamp(),
    )


def _md5_in(etag: str, answer: Mapping[str, Any], bucket: str) -> str | None:
    """The MD5 of the body where the ETag is one: not of uploads in parts, nor of what KMS or customers encrypt."""
    encrypted = answer.get("ServerSideEncryption", "").startswith("aws:kms")
    if encrypted or "SSECustomerAlgorithm" in answer or bucket.endswith(_EXPRESS_BUCKET):
        return None
    plain = etag.strip('"')
    return plain if PLAIN_MD5.fullmatch(plain) else None


def required(answer: Mapping[str, Any], name: str) -> Any:
    """What every whole answer has."""
    if answer.get(name) is None:
        raise BrokenAnswerError(f"an answer without {name}")
    return answer[name]
