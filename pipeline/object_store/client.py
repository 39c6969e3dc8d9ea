"""The boto3 client: configured from the environment, one a process, made at the first use."""

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from ldznet.errors import UserError
from pipeline.object_store.request_rate import Pace, RequestRate, pace_of
from pipeline.object_store.s3_errors import asks_to_slow_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

CONNECTIONS = 64  # so that 32 threads and a multipart upload never wait for one another


class ClientSource:
    """Gives the process's client; a pickled or forked copy makes its own, from its own environment.

    boto3 takes credentials, region and endpoint from the environment (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, …) or from the platform it runs on. Nothing of it is kept.
    """

    def __init__(self, *, bucket: str, rate: RequestRate, reached: bool) -> None:
        """For one store.

        Args:
            bucket: what requests go to.
            rate: how fast they may.
            reached: somebody of this job has reached the server: where it does not answer, it is away.
        """
        self._bucket, self._rate, self._reached = bucket, rate, reached
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self.known_buckets: set[str] = set()  # those that have been seen to exist

    def __reduce__(self) -> "tuple[Callable[[], ClientSource], tuple[()]]":
        again = partial(ClientSource, bucket=self._bucket, rate=self._rate, reached=self._reached)
        return again, ()

    def client(self) -> "S3Client":
        """The client, safe for all threads of this process."""
        if self._process != os.getpid():  # forked: the parent's sockets must not be shared, nor its lock
            self._reset()
        with self._lock:
            if self._client is None:
                self._client = _connect(_Pacing(pace_of(self._bucket, self._rate)), reached=self._reached)
            return self._client


def _connect(pacing: "_Pacing", *, reached: bool) -> "S3Client":
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
            retries={
                "mode": "standard",
                "total_max_attempts": 1,
            },  # `Retries` tries again, and knows the bound
            # An endpoint of one's own seldom has a name for each bucket; Amazon's has.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Every body goes with its own Content-MD5, so the newer trailing checksums, which other servers
            # often refuse, add nothing. Those that a server sends are checked.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_supported",
        ),
    )
    events = client.meta.events
    events.register_first("needs-retry.s3", _FirstContact(answered=reached))
    events.register_first("request-created.s3", pacing.before)  # first: the wait is over when it is signed
    events.register_first("response-received.s3", pacing.after)
    return client


class _Pacing:
    """Has each request wait for its moment, and hears of throttling."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def before(self, *, event_name: str, **_: Any) -> None:
        self._pace.wait(reads=_reads(event_name))

    def after(self, *, event_name: str, parsed_response: dict[str, Any] | None = None, **_: Any) -> None:
        if parsed_response is not None and asks_to_slow_down(parsed_response):
            self._pace.slow_down(reads=_reads(event_name))


def _reads(event_name: str) -> bool:
    """Whether S3 counts the operation among the reads."""
    return event_name.rpartition(".")[2].startswith(("Get", "Head", "List"))


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


class _FirstContact:
    """Ends the retries where no server has ever answered: then the address is wrong, not the network slow."""

    def __init__(self, *, answered: bool) -> None:
        self._answered = answered

    def __call__(self, *, response: object, caught_exception: Exception | None, **_: Any) -> None:
        if response is not None:
            self._answered = True
        elif not self._answered and isinstance(caught_exception, EndpointConnectionError):
            raise NeverReachedError from caught_exception


class NeverReachedError(Exception):
    """No server has answered at the endpoint since the client was made."""
