"""A further Ray node on this machine, which joins a head of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.services.loopback_server import LoopbackServer
from pipeline.services.ports import LOOPBACK, free_ports
from pipeline.services.ray_command import has_started, ray_command

_OBJECT_STORE_BYTES = 256 << 20
_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
    "metrics-export-port",
)


class RayNode(LoopbackServer):
    """A node beside a head, to try what happens between nodes; see `LoopbackServer`."""

    grace_s = 5.0

    def __init__(
        self,
        *,
        folder: Path,
        sessions: Path,
        number: int,
        head: str,
        environment: Mapping[str, str],
        secrets: Sequence[str],
    ) -> None:
        """`head` is the address at which nodes join; `environment` and `secrets` are the head's.

        `sessions` is below the head's, but not the same: two nodes would take each other's working directories away.
        """
        super().__init__(folder=folder)
        self.name = f"ray-node-{number}"
        self._head = head
        self._sessions = sessions
        self._environment = dict(environment)
        self._secrets = tuple(secrets)
        self._ports: dict[str, int] = {}

    @property
    def address(self) -> str:
        """Where other nodes reach it."""
        return f"{LOOPBACK}:{self._ports['node-manager-port']}"

    def secrets(self) -> Sequence[str]:
        """The head's."""
        return self._secrets

    def choose_ports(self) -> None:
        """A port for each of its servers."""
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))

    def command(self) -> Sequence[str | Path]:
        """`ray start --address`, all of it on loopback."""
        return ray_command(
            "start",
            f"--address={self._head}",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={LOOPBACK}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={self._sessions}",
            *(f"--{name}={port}" for name, port in self._ports.items()),
        )

    def servers_environment(self) -> Mapping[str, str]:
        """The head's: its token, and what jobs find set."""
        return self._environment

    def answers(self) -> bool:
        """Whether the head has taken it in."""
        return has_started(self.log)
