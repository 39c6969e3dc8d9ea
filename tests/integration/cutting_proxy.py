"""A TCP proxy on loopback that breaks off whatever goes through it, and then lets nobody in for a while."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class CuttingProxy:
    """Between clients and a server; `cuts` counts the connections that were broken off."""

    upstream: tuple[str, int]
    address: str = ""
    cuts: int = 0
    _away_until: float = 0.0  # by time.monotonic()
    _open: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self, *, away_s: float) -> None:
        """Reset all connections, and all that are made until it is back."""
        with self._lock:
            self._away_until = time.monotonic() + away_s
            broken, self._open = self._open, []
        self.cuts += len(broken)
        for one in broken:
            _reset(one)

    def accept(self, listener: socket.socket) -> None:
        """Until the listener is closed."""
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                away = time.monotonic() < self._away_until
            if away:
                _reset(client)
                continue
            server = socket.create_connection(self.upstream)
            with self._lock:
                self._open += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()


@contextmanager
def cutting_proxy(url: str) -> Iterator[CuttingProxy]:
    """Before the server at `url`, for as long as the `with`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CuttingProxy(upstream=(parts.hostname, parts.port))
        proxy.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=proxy.accept, args=(listener,))
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            listener.close()
            thread.join()
            proxy.cut(away_s=0)
