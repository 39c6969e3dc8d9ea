"""The cluster that a job is submitted to: which machines it is, and what is told where there is none."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from unit.jobs.jobs_api_server import JobsApi

from jobs.submit_cluster import Cluster
from jobs.submit_door import ADDRESS_VARIABLES
from ldznet.errors import UserError


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ADDRESS_VARIABLES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("addresses", "here"),
    [
        (("127.0.0.1",), True),
        (("127.0.0.1", "127.0.0.1"), True),
        (("10.0.0.1", "10.0.0.2"), False),
        ((), False),
    ],
)
def test_nodes_with_this_machines_name_are_it_only_at_one_address(
    addresses: tuple[str, ...], here: bool
) -> None:
    server = JobsApi(addresses=addresses)
    with server.served():
        assert Cluster(server.address).is_this_machine() is here


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"no"), (500, b"no"), (200, b"<html>"), (200, b'{"version": "1"}'), (200, b"[]"), (200, b"null")],
)
def test_another_server_is_told_in_a_line(status: int, body: bytes) -> None:
    with web_server(status, body) as address, pytest.raises(UserError, match=f"answers at {address}"):
        Cluster(address)


@pytest.mark.parametrize(
    "address", ["htp://head:8265", "head", "127.0.0.1:8265", "http://", "http://a:port", "ray://a:1"]
)
def test_what_can_be_no_address_is_refused_before_anybody_is_asked(address: str) -> None:
    with pytest.raises(UserError, match=r"is no dashboard's address: give --address http://HOST:8265"):
        Cluster(address)
