"""A Ray cluster of several nodes on one machine, each a `ray start --block` of its own, closed by a token.

Every process that comes of it carries a mark in its environment, by which it is found: to be killed with its node, and
to be seen to be gone at the end.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from pipeline.services.child import ChildServer, last_lines
from pipeline.services.ports import LOOPBACK, free_ports, is_free
from pipeline.services.ray_command import NODE_SETTINGS, has_started, ray_command

CHECKOUT = Path(__file__).parents[2]
PATIENCE_S = 400
_TRIES = 4
_MARK = "LDZNET_TEST_CLUSTER"
_OF_NODE = "LDZNET_TEST_NODE"
_HEAD_PORTS = ("port", "dashboard-port", "ray-client-server-port")
_NODE_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
    "metrics-export-port",
)


def wait_for(what: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"nothing within {patience_s} s")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that was started."""

    name: str
    server: ChildServer
    ports: Mapping[str, int]


class RayNodes:
    """The cluster. Drivers join it with `environment`; nodes come and are killed as the test wants."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mark = secrets.token_hex(8)
        self._token = folder / "token"
        self._token.write_text(secrets.token_hex(32))
        self._token.chmod(0o600)
        # Short: sockets lie in it, whose paths have a limit.
        self._sessions = Path(tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR")))
        self._count = 0
        self._ports: set[int] = set()
        self._seen: list[psutil.Process] = []
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self.nodes.copy()):
            self.kill(node)
        for process in _marked(_MARK, self._mark):
            _kill(process)
        wait_for(lambda: not _marked(_MARK, self._mark) and not any(map(_lives, self._seen)), 60)
        wait_for(lambda: all(map(is_free, self._ports)), 60)
        shutil.rmtree(self._sessions, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the head."""
        return f"{LOOPBACK}:{self.nodes[0].ports['port']}"

    @property
    def environment(self) -> dict[str, str]:
        """With which a driver joins."""
        return self._environment("driver") | {"RAY_ADDRESS": self.address}

    def start_head(
        self, *, cpus: int, resources: Mapping[str, float] | None = None, dashboard: bool = False
    ) -> Node:
        """The first node, or the first one again after all were killed."""
        assert not self.nodes
        words = [
            "--head",
            "--num-gpus=0",
            f"--dashboard-host={LOOPBACK}",
            f"--temp-dir={self._sessions}/{self._count}",
        ]
        words += [f"--include-dashboard={str(dashboard).lower()}"]
        return self._start(words, _HEAD_PORTS, cpus=cpus, resources=resources)

    def add_node(self, *, cpus: int, gpus: int = 0, resources: Mapping[str, float] | None = None) -> Node:
        """One node more; `gpus` are so by name only."""
        return self._start(
            [f"--address={self.address}", f"--num-gpus={gpus}"], (), cpus=cpus, resources=resources
        )

    def kill(self, node: Node) -> None:
        """SIGKILL for the node's raylet first, then for its workers and all else that it has."""
        family = self.family(node)
        self._seen += family
        for process in sorted(family, key=lambda each: Path(name_of(each)).name != "raylet"):
            _kill(process)
        node.server.stop()
        wait_for(lambda: not [_kill(each) for each in _marked(_OF_NODE, node.name)], 30)
        self.nodes.remove(node)

    def family(self, node: Node) -> list[psutil.Process]:
        """All processes of a node. Workers write their titles over their environment, so descent counts as well."""
        found = set(_marked(_OF_NODE, node.name))
        for process in found.copy():
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= set(process.children(recursive=True))
        return list(found)

    def workers(self, node: Node, title: str) -> list[psutil.Process]:
        """Those of a node's processes whose name begins so, such as `ray::ShardWorker`."""
        return [process for process in self.family(node) if name_of(process).startswith(title)]

    def drive(self, module: str, *words: str | Path, log: Path) -> "subprocess.Popen[bytes]":
        """Start a job that joins the cluster, its output in `log`."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=CHECKOUT,
                env=self.environment,
                start_new_session=True,
            )

    def while_running(self, driver: "subprocess.Popen[bytes]", log: Path, what: Callable[[], Any]) -> Any:
        """What comes while a driver runs; its last words where it ends before."""

        def found() -> Any:
            seen = what()
            assert seen or driver.poll() is None, f"it ended with {driver.poll()}: {last_lines(log, 60)}"
            return seen

        return wait_for(found)

    def run(self, module: str, *words: str | Path, log: Path) -> str:
        """A job from beginning to end; what it told."""
        code = self.drive(module, *words, log=log).wait(PATIENCE_S)
        told = log.read_text(errors="replace")
        assert code == 0, f"{module} ended with {code}: {last_lines(log, 40)}"
        return told

    def _start(
        self,
        words: Iterable[str],
        port_names: Iterable[str],
        *,
        cpus: int,
        resources: Mapping[str, float] | None,
    ) -> Node:
        for _ in range(_TRIES):
            node = self._try_to_start([*words], [*port_names], cpus=cpus, resources=resources)
            if node.server.exit_code() is None:
                return node
            self.kill(node)
        raise AssertionError(last_lines(node.server.log, 40))

    def _try_to_start(
        self, words: list[str], port_names: list[str], *, cpus: int, resources: Mapping[str, float] | None
    ) -> Node:
        """A node, up or not: on a machine at its limit, Ray's own processes wait for each other in vain."""
        self._count += 1
        name = f"{self._mark}-{self._count}"
        names = [*port_names, *_NODE_PORTS]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._ports |= set(ports.values())
        log = self._folder / f"{name}.log"
        command = [*ray_command("start", "--block", "--disable-usage-stats"), *words]
        command += [f"--node-ip-address={LOOPBACK}", f"--num-cpus={cpus}"]
        command += [f"--object-store-memory={80 << 20}", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--resources={json.dumps(dict(resources or {}))}"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        server = ChildServer(
            command, environment=self._environment(name), folder=self._folder, log=log, grace_s=2
        )
        node = Node(name=name, server=server, ports=ports)
        self.nodes.append(node)
        wait_for(lambda: has_started(log) or server.exit_code() is not None)
        return node

    def _environment(self, name: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return kept | {
            _MARK: self._mark,
            _OF_NODE: name,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_USAGE_STATS_ENABLED": "0",
            **NODE_SETTINGS,
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # so soon a node goes that has lost its head
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self._sessions),
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")]),
        }


def _marked(name: str, value: str) -> list[psutil.Process]:
    """Living processes in whose environment the variable has this value."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and _lives(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def name_of(process: psutil.Process) -> str:
    """What a process runs; nothing where it has ended."""
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""


def _kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True
