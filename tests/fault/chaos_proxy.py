"""An HTTP proxy before a real S3 server that does to requests and answers what networks and servers do.

What happens to a request is a word; see `WORDS`. Either a test writes down which (`Script`), or it is drawn from a
seed (`Chaos`): by the request's method, path and range, and how often it came before, so that threads change nothing.
"""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

WORDS = {
    "503": "SlowDown (any number is an HTTP status), and nothing is done",
    "reset": "the connection is reset, and nothing is done",
    "lose the answer": "it is done, and the connection is reset",
    "corrupt": "a bit of the body changes on its way to the server",
    "cut the body": "half of the body reaches the server, then both connections break off",
    "flip": "a bit of the answer's body changes",
    "cut": "half of the answer's body arrives, then the connection breaks off",
    "error inside": "status 200 with an error in the body, and nothing is done",
    "error inside, done": "the same, but it is done",
    "delay": "it takes longer",
}

Fault = Callable[[str, str], str | None]

_OWN_PLACE = re.compile("[0-9a-f]{32}")  # of a test in the bucket: another one each time

_ERROR = '<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>Please try again.</Message></Error>'


class Script:
    """What happens to the next requests of a method, one after the other; afterwards nothing does."""

    def __init__(self) -> None:
        self.plan: dict[str, list[str]] = {}
        self.seen: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str) -> str | None:
        with self._lock:
            self.seen.append(method)
            waiting = self.plan.get(method, [])
            return waiting.pop(0) if waiting else None


@dataclass
class Chaos:
    """Faults drawn from a seed, each with its share of the requests."""

    seed: int
    shares: dict[str, float]
    every_other: bool = False  # a request that met a fault meets none the next time
    away_until: float = 0.0  # by time.monotonic(); until then every request is reset
    _times: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, method: str, path: str) -> str | None:
        if time.monotonic() < self.away_until:
            return "reset"
        path = _OWN_PLACE.sub("", path, count=1)
        with self._lock:
            self._times[method, path] += 1
            number = self._times[method, path]
        if self.every_other and number % 2 == 0:
            return None
        drawn = random.Random(f"{self.seed} {method} {path} {number}").random()  # noqa: S311 - no secret
        for word, share in self.shares.items():
            if drawn < share:
                return word
            drawn -= share
        return None

    def go_away(self, seconds: float) -> None:
        """Answer nothing from now on, for so long."""
        self.away_until = time.monotonic() + seconds


@dataclass
class Events:
    """What was done, by word, and the server's answers to what was changed on its way."""

    done: Counter[str] = field(default_factory=Counter)
    answers_to_changed: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, word: str) -> None:
        with self._lock:
            self.done[word] += 1


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on, unless `fault` names something to be done to one."""

    protocol_version = "HTTP/1.1"
    upstream: str
    fault: Fault
    events: Events

    def pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # who sent it is gone
            self.close_connection = True
            return
        word = type(self).fault(self.command, f"{self.path} {self.headers.get('Range', '')}".rstrip())
        before = {"reset": self._reset, "error inside": self._error_inside}
        if word is not None and word.isdigit():
            self.events.count(word)
            self._error(int(word), "SlowDown" if word == "503" else "InternalError")
        elif word in before:
            self.events.count(word)
            before[word]()
        elif word == "cut the body" and body:
            self.events.count(word)
            self._ask_by_half(body)
            self._reset()
        else:
            self._ask_and_tell(body, word)

    def _ask_and_tell(self, body: bytes, word: str | None) -> None:
        changed = word == "corrupt" and bool(body)
        if word == "delay":
            time.sleep(0.2)
        answer, content = self._ask(_flipped(body) if changed else body)
        if changed:
            self.events.answers_to_changed.append(answer.status)
        done = word is not None and (changed or word in {"delay", "lose the answer", "error inside, done"})
        if word == "lose the answer":
            self._reset()
        elif word == "error inside, done":
            self._error_inside()
        else:
            flipped, cut = word == "flip" and bool(content), word == "cut" and bool(content)
            done = done or flipped or cut
            self._tell(answer, content)
            self.wfile.write(
                _flipped(content) if flipped else content[: len(content) // 2] if cut else content
            )
            self.close_connection = self.close_connection or cut
        if done and word is not None:
            self.events.count(word)

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        server = self._asked()
        server.endheaders(body)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        return answer, content

    def _ask_by_half(self, body: bytes) -> None:
        server = self._asked()
        server.endheaders(body[: len(body) // 2])
        server.close()

    def _asked(self) -> http.client.HTTPConnection:
        server = http.client.HTTPConnection(self.upstream, timeout=30)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name != "Expect":
                server.putheader(name, value)
        return server

    def _tell(self, answer: http.client.HTTPResponse, content: bytes) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name not in {"Transfer-Encoding", "Connection"}:
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None and answer.status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def _error_inside(self) -> None:
        self._error(200, "InternalError")

    def _error(self, status: int, code: str) -> None:
        content = _ERROR.format(code=code).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests speak."""


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(Proxy, f"do_{_method}", Proxy.pass_on)


def _flipped(content: bytes) -> bytes:
    """One bit another; which, follows from the content's length and beginning."""
    place = random.Random(content[:64] + len(content).to_bytes(8)).randrange(len(content))  # noqa: S311 - no secret
    return content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed break off their connections; nobody needs to read of it."""


@contextmanager
def served(seaweedfs: Any, fault: Fault, events: Events | None = None) -> Iterator[str]:
    """A proxy before the server, for as long as the `with`; its address."""
    fields = {
        "upstream": urlsplit(seaweedfs.endpoint).netloc,
        "fault": staticmethod(fault),
        "events": events or Events(),
    }
    handler = type("Handler", (Proxy,), fields)
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        # Connections that are still open end with the next request.
        handler.fault = staticmethod(lambda method, path: "reset")
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def behind_chaos(seaweedfs: Any, chaos: Fault) -> Iterator[Events]:
    """The same, with the proxy's address in the environment: for stores that are opened inside the `with`."""
    events = Events()
    with served(seaweedfs, chaos, events) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield events
