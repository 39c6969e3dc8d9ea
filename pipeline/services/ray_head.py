"""A Ray head on this machine: closed by a token, bound to loopback, for jobs that are submitted to it."""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pipeline.services.loopback_server import LoopbackServer, http_status
from pipeline.services.ports import LOOPBACK, free_ports
from pipeline.services.ray_command import NODE_SETTINGS, has_started, ray_command
from pipeline.services.ray_node import RayNode

_OBJECT_STORE_BYTES = 256 << 20  # shards go to object storage, never through Ray's memory
_SHORTEST_SECRET = 8
_TEMPORARY = "ldznet-ray-"

# One port each, so that none is Ray's usual one, which another Ray of this machine may have.
_PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
    "metrics-export-port",
)


class RayHead(LoopbackServer):
    """A Ray head with a token made for this run; see `LoopbackServer`.

    Whoever may submit a job runs what they like as the head's user: so the token. Its sessions lie in a folder of
    their own in the temporary folder, as the sockets in them have paths of limited length, and go when it does. Each
    node's have its number: the head is the first.
    """

    name = "ray"
    grace_s = 5.0

    def __init__(
        self, *, folder: Path, jobs: Mapping[str, str], cpus: int | None = None, nodes: int = 1
    ) -> None:
        """`jobs` are variables that jobs find set, such as credentials: Ray would keep what a submitter sends.

        With more than one of `nodes`, others join the head, each with the machine's CPUs of its own.
        """
        super().__init__(folder=folder)
        self.others: list[RayNode] = []
        self._count = nodes
        self._jobs = dict(jobs)
        self._cpus = cpus
        self._token = secrets.token_hex(32)
        self._ports: dict[str, int] = {}
        self._sessions: Path | None = None

    @property
    def address(self) -> str:
        """Where jobs are submitted, and the dashboard."""
        return f"http://{LOOPBACK}:{self._ports['dashboard-port']}"

    @property
    def node_address(self) -> str:
        """Where nodes join, and drivers."""
        return f"{LOOPBACK}:{self._ports['port']}"

    def environment(self) -> dict[str, str]:
        """The variables by which `ray job submit` finds the head. They hold the token."""
        return {
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
        }

    def secrets(self) -> Sequence[str]:
        """The token, and the values that jobs are given; the shortest are none, and words of any message."""
        return (self._token, *(value for value in self._jobs.values() if len(value) >= _SHORTEST_SECRET))

    def choose_ports(self) -> None:
        """A port for each of its servers, and a new folder for its sessions."""
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._remove_sessions()
        self._sessions = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
        self._pointer.symlink_to(self._sessions)

    def __enter__(self) -> Self:
        super().__enter__()
        assert self._sessions is not None, "it runs"
        try:
            for number in range(2, self._count + 1):
                node = RayNode(
                    folder=self.folder,
                    sessions=self._sessions / str(number),
                    number=number,
                    head=self.node_address,
                    environment=self.servers_environment(),
                    secrets=self.secrets(),
                )
                node.__enter__()
                self.others.append(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        while self.others:
            self.others.pop().__exit__(*error)
        super().__exit__(*error)
        self._remove_sessions()

    def command(self) -> Sequence[str | Path]:
        """`ray start --head`, all of it on loopback."""
        assert self._sessions is not None, "ports are chosen first"
        return ray_command(
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={LOOPBACK}",
            f"--dashboard-host={LOOPBACK}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={self._sessions / '1'}",  # Ray opens this one to all; the folder around it is ours alone
            *([f"--num-cpus={self._cpus}"] if self._cpus else []),
            *(f"--{name}={port}" for name, port in self._ports.items()),
        )

    def servers_environment(self) -> Mapping[str, str]:
        """Ours without another Ray's, the jobs' variables and the token."""
        assert self._sessions is not None, "ports are chosen first"
        foreign = ("RAY_", "MLFLOW_", "AWS_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        programs = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        return (
            kept
            | self._jobs
            | NODE_SETTINGS
            | {
                "PATH": programs,  # a job's `python` is ours
                "RAY_ADDRESS": self.node_address,  # for Ray's own actors, which look for a head, where there are others
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": self._token,
                "RAY_USAGE_STATS_ENABLED": "0",
                "TMPDIR": str(
                    self._sessions
                ),  # Ray's own servers leave things in it, and so do jobs that are killed
                # Without it Ray binds all interfaces on Linux, whatever address it is given.
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            }
        )

    def answers(self) -> bool:
        """Whether it is up, and lists its jobs to who has the token."""
        return has_started(self.log) and ray_answers(self.address, token=self._token)

    @property
    def _pointer(self) -> Path:
        return self.folder / "sessions"

    def _remove_sessions(self) -> None:
        """Those of this run, or of one that was killed: only a folder that is named as ours are."""
        if not self._pointer.is_symlink():
            return
        sessions = self._pointer.readlink()
        if sessions.name.startswith(_TEMPORARY):
            shutil.rmtree(sessions, ignore_errors=True)
        self._pointer.unlink()


def ray_answers(address: str, *, token: str) -> bool:
    """Whether a Ray head takes jobs from who has this token."""
    return http_status(address, "/api/jobs/", {"Authorization": f"Bearer {token}"}) == 200
