"""What an S3 error means: try again, the user's mistake, or an answer like any other."""

from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from ldznet.errors import UserError

_CHANGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch"})  # the body was changed on its way
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException"})
_INFRASTRUCTURE = _CHANGED | _THROTTLED | {"IncompleteBody", "RequestTimeout"}
_CREDENTIALS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)


class BrokenAnswerError(Exception):
    """An answer that no server gives: something on the way has changed it, or stands in for the server."""


S3Fault = BotoCoreError | ClientError | ResponseParserError | BrokenAnswerError
FAULTS = (BotoCoreError, ClientError, ResponseParserError, BrokenAnswerError)


def error_code(error: ClientError) -> str:
    """The server's word for it; for a HEAD, which has no body, the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status(error: ClientError) -> int:
    """The HTTP status, 0 where there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_infrastructure(error: S3Fault) -> bool:
    """Whether the same request may succeed later: throttling, 5xx, 409, resets, timeouts, damaged bodies."""
    if isinstance(error, ClientError):
        return status(error) in {409, 429} or status(error) >= 500 or error_code(error) in _INFRASTRUCTURE
    cut = isinstance(error, (HTTPClientError, BotoConnectionError, IncompleteReadError))
    return cut or is_damage(error)


def is_damage(error: S3Fault) -> bool:
    """Whether what was sent is not what arrived, there or here."""
    if isinstance(error, ClientError):
        return error_code(error) in _CHANGED
    return isinstance(error, (FlexibleChecksumError, ResponseParserError, BrokenAnswerError))


def asks_to_slow_down(answer: dict[str, Any]) -> bool:
    """Whether a parsed answer is S3's wish for fewer requests."""
    throttled = answer.get("Error", {}).get("Code") in _THROTTLED
    return throttled or answer.get("ResponseMetadata", {}).get("HTTPStatusCode") in {429, 503}


def users_mistake(error: S3Fault, *, endpoint: str, bucket: str, key: str) -> UserError | None:
    """The mistake in one line without a secret, or None where the error is not the user's."""
    shown = without_credentials(endpoint)
    line = None
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
        line = f"no S3 credentials for {shown}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif isinstance(error, ClientError):
        code = error_code(error)
        if code == "NoSuchBucket":
            line = f"no bucket {bucket!r} at {shown}: make it (aws s3 mb s3://{bucket}) or name another"
        elif code in _CREDENTIALS:
            line = (
                f"{shown} refused the S3 credentials ({code}): check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, the region and the clock"
            )
        elif status(error) in {401, 403}:
            line = f"no permission for s3://{bucket}/{key} at {shown} ({code}): use credentials that have it"
        elif status(error) in {301, 307}:
            line = f"bucket {bucket!r} at {shown} is in another region: set AWS_DEFAULT_REGION to it"
    return UserError(line) if line else None


def without_credentials(endpoint: str) -> str:
    """The endpoint as it may be shown: scheme, host and port."""
    parts = urlsplit(endpoint)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"
