"""Where Ray Train keeps checkpoints: a pyarrow file system for a URL."""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from ldznet.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def storage_filesystem(url: str) -> tuple["FileSystem", str]:
    """A pyarrow file system for a URL, and the path in it. Credentials stay in the environment of each process."""
    from pyarrow.fs import LocalFileSystem, S3FileSystem

    parts = urlsplit(url)
    if parts.scheme in {"", "file"}:
        return LocalFileSystem(), str(Path(parts.path).absolute())
    if parts.scheme != "s3" or not parts.netloc:
        raise UserError(f"training storage {url!r}: give s3://bucket/prefix, file:///folder or a folder")
    endpoint = _s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    filesystem = S3FileSystem(
        endpoint_override=endpoint.netloc or None, scheme=endpoint.scheme or "https", region=region
    )
    _check_bucket(filesystem, parts.netloc)
    return filesystem, f"{parts.netloc}{parts.path}".rstrip("/")


def _s3_endpoint() -> SplitResult:
    return urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")


def _check_bucket(filesystem: "FileSystem", bucket: str) -> None:
    from pyarrow.fs import FileType

    try:
        found = filesystem.get_file_info(bucket).type
    except OSError as error:
        if not any(
            sign in str(error) for sign in ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "403")
        ):
            raise
        raise UserError(
            f"no access to s3://{bucket}: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    if found == FileType.NotFound:
        raise UserError(f"there is no bucket s3://{bucket}: make it, or name another as the storage")
