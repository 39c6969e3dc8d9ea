"""From a URL to the store behind it."""

import re
from pathlib import Path
from urllib.parse import unquote

from ldznet.errors import UserError
from pipeline.object_store.files import FileStore
from pipeline.object_store.key import check_prefix
from pipeline.object_store.store import ObjectStore

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_KNOWN = "s3://BUCKET/PREFIX, file:///FOLDER, or a folder's path"


def open_store(url: str | Path, *, sharing: int | None = None) -> ObjectStore:
    """The store at `s3://bucket/prefix`, `file:///folder`, or a folder's path (relative to where we run).

    Opening asks the network nothing: a missing bucket or wrong credentials show at the first call.

    Args:
        url: where.
        sharing: of how many processes this is one, where a driver that has reached the store set them to work:
            each takes its share of the requests that S3 serves, and takes a silent server for one that is away.

    Raises:
        UserError: the URL has another scheme or is no URL of its scheme.
    """
    text = str(url)
    match = _SCHEME.fullmatch(text) if isinstance(url, str) else None
    if not text:
        raise UserError(f"an empty store URL: use {_KNOWN}")
    if match is None:
        return FileStore(root=Path(text).expanduser().absolute())
    scheme, slash, rest = match.groups()
    if scheme.lower() not in {"s3", "file"}:
        raise UserError(f"store URL with unknown scheme {scheme!r}: use {_KNOWN}")
    if not slash:
        raise UserError(f"store URL {text!r} lacks a slash: use {_KNOWN}")
    return _open_s3(rest, sharing) if scheme.lower() == "s3" else _open_folder(text, rest)


def _open_folder(url: str, rest: str) -> ObjectStore:
    path = Path(unquote(rest.removeprefix("localhost")))
    if not path.is_absolute():
        raise UserError(f"store URL {url!r} names no absolute path: use file:///FOLDER or the path alone")
    return FileStore(root=path)


def _open_s3(rest: str, sharing: int | None) -> ObjectStore:
    from pipeline.object_store.request_rate import RequestRate
    from pipeline.object_store.s3 import S3Store

    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise UserError("an s3:// URL holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{bucket!r} is no bucket's name: use s3://BUCKET/PREFIX")
    rate = RequestRate() if sharing is None else RequestRate.shared_by(sharing)
    prefix = check_prefix(prefix.rstrip("/"))
    return S3Store(bucket=bucket, prefix=prefix, rate=rate, reached=sharing is not None)
