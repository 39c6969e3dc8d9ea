"""A small HTTP server that speaks as much of Ray's Jobs API as `ldznet submit` asks for, and loses connections."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class JobsApi:
    """One cluster: its jobs as it tells them, and what happens to the connections to it."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tails: list[tuple[str, str]] = field(
        default_factory=list
    )  # log so far, then `close`, `abort`, `hang`; or `refuse`
    errors: int = 0  # so many of the next questions for jobs are answered with status 503
    away: int = 0  # and so many after them by a reset
    on_post: Callable[[], None] = lambda: None
    on_tail: Callable[[int], None] = lambda number: None
    connections: int = 0  # to the log
    posted: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""
    addresses: tuple[str, ...] = ("127.0.0.1",)  # of its nodes, all called as this machine is

    def add(self, name: str, status: str, *, code: int | None = None, message: str = "") -> None:
        self.jobs[name] = {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": status,
            "entrypoint": "true",
            "message": message,
            "start_time": 1_000 * len(self.jobs),
            "metadata": {},
            "driver_exit_code": code,
        }

    async def version(self, request: web.Request) -> web.Response:
        import ray

        return web.json_response(
            {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
        )

    async def nodes(self, request: web.Request) -> web.Response:
        node = {"state": "ALIVE", "nodeManagerHostname": socket.gethostname()}
        gone = {"state": "DEAD", "nodeManagerHostname": "another", "nodeManagerAddress": "10.0.0.9"}
        alive = [{**node, "nodeManagerAddress": address} for address in self.addresses]
        return web.json_response({"data": {"summary": [{"raylet": one} for one in (*alive, gone)]}})

    async def package(self, request: web.Request) -> web.Response:
        return web.Response(text="it is there already")

    async def listed(self, request: web.Request) -> web.Response:
        if self.errors > 0:
            self.errors -= 1
            return web.Response(status=503, text="starting")
        if self.away > 0:
            self.away -= 1
            return self._reset(request)
        return web.json_response(list(self.jobs.values()))

    async def post(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.posted.append(asked)
        self.on_post()
        await asyncio.sleep(0.5)
        name = asked["submission_id"]
        self.add(name, "SUCCEEDED", code=0)
        return web.json_response({"job_id": name, "submission_id": name})

    async def tail(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        self.on_tail(self.connections)
        text, end = self.tails.pop(0) if len(self.tails) > 1 else self.tails[0]
        if end == "refuse":
            return web.Response(status=500)
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        for letter in text:  # in parts that differ from one connection to the next
            await answer.send_str(letter)
        await asyncio.sleep(0.05)  # on its way before the end
        if end == "hang":
            await asyncio.sleep(3)
        if end == "abort":
            self._reset(request)
        return answer

    @staticmethod
    def _reset(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    @contextmanager
    def served(self) -> Iterator[None]:
        """On a free port, for as long as the `with`."""
        loop, ready = asyncio.new_event_loop(), threading.Event()
        app = web.Application()
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/nodes", self.nodes)
        app.router.add_get("/api/packages/{protocol}/{name}", self.package)
        app.router.add_get("/api/jobs/", self.listed)
        app.router.add_post("/api/jobs/", self.post)
        app.router.add_get("/api/jobs/{name}/logs/tail", self.tail)
        runner = web.AppRunner(app)

        async def start() -> None:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=1)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.address = f"http://{host}:{port}"
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(start())
            loop.run_forever()

        thread = threading.Thread(target=run)
        thread.start()
        ready.wait()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
