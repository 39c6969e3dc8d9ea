"""The boto3 client: configured from the environment, one a process, made at the first use."""

import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from ldznet.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS = 64  # so that 32 threads and a multipart upload never wait for one another


class ClientSource:
    """Gives the process's client; a pickled or forked copy makes its own, from its own environment.

    boto3 takes credentials, region and endpoint from the environment (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, …) or from the platform it runs on. Nothing of it is kept.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self.known_buckets: set[str] = set()  # those that have been seen to exist

    def __reduce__(self) -> tuple[type["ClientSource"], tuple[()]]:
        return ClientSource, ()

    def client(self) -> "S3Client":
        """The client, safe for all threads of this process."""
        if self._process != os.getpid():  # forked: the parent's sockets must not be shared, nor its lock
            self._reset()
        with self._lock:
            if self._client is None:
                self._client = _connect()
            return self._client


def _connect() -> "S3Client":
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not _is_address(endpoint):
        raise UserError("AWS_ENDPOINT_URL is no http:// or https:// address: set it to the object store's")
    session = boto3.session.Session()
    client: S3Client = session.client(
        "s3",
        region_name=os.environ.get("AWS_REGION") or session.region_name or "us-east-1",
        config=Config(
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=CONNECTIONS,
            tcp_keepalive=True,
            retries={"mode": "standard", "total_max_attempts": 3},
            # An endpoint of one's own seldom has a name for each bucket; Amazon's has.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Every body goes with its own Content-MD5, so the newer trailing checksums, which other servers
            # often refuse, add nothing.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register_first("needs-retry.s3", _FirstContact())
    return client


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


class _FirstContact:
    """Ends the retries where no server has ever answered: then the address is wrong, not the network slow."""

    def __init__(self) -> None:
        self._answered = False

    def __call__(self, *, response: object, caught_exception: Exception | None, **_: Any) -> None:
        if response is not None:
            self._answered = True
        elif not self._answered and isinstance(caught_exception, EndpointConnectionError):
            raise NeverReachedError from caught_exception


class NeverReachedError(Exception):
    """No server has answered at the endpoint since the client was made."""
