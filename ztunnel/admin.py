"""The shell's HTTP doors: admin (Unix socket and loopback), metrics, readiness. Asks others; owns no state.

Paths, methods and texts are those that Istio's tools and kubelet's probes expect.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

_LARGE: Final = 64 * 1024
"""Bytes from which on an answer is compressed beside the loop."""
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the doors serve. `metrics` and `dump` may take a while and do not block the loop."""

    status: Callable[[], Mapping[str, Any]]
    pending: Callable[[], Sequence[str]]
    """What readiness waits for; empty: ready."""
    metrics: Callable[[], Awaitable[bytes]]
    dump: Callable[[], Awaitable[bytes]]
    """A JSON object."""
    explain: Callable[[str, str], Awaitable[bytes]]
    """(source, destination) -> JSON. Raises ValueError: a sentence about the question."""
    set_log_level: Callable[[str | None], str]
    """A specification (`ztunnel.levels`), `reset`, or None for no change; the levels then. Raises ValueError."""
    quit: Callable[[], None]


def admin_app(answers: Answers, private: Iterable[web.RouteDef] = ()) -> web.Application:
    """`private`: what only the socket serves that root alone can open."""

    async def status(_: web.Request) -> web.Response:
        return web.json_response(answers.status(), dumps=_dumps)

    async def dump(_: web.Request) -> web.Response:
        return web.Response(body=await answers.dump(), content_type="application/json")

    async def explain(request: web.Request) -> web.Response:
        try:
            said = await answers.explain(request.query.get("src", ""), request.query.get("dst", ""))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(body=said, content_type="application/json")

    async def logging(request: web.Request) -> web.Response:
        wanted = "reset" if "reset" in request.query else request.query.get("level")
        try:
            now = answers.set_log_level(wanted)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(text=f"current log level is {now}\n")

    async def quit(_: web.Request) -> web.Response:
        answers.quit()
        return web.Response(text="shutdown now\n")

    app = _app(answers, "/metrics")
    app.router.add_get("/status", status)
    app.router.add_get("/config_dump", dump)
    app.router.add_get("/explain", explain)
    app.router.add_post("/logging", logging)
    app.router.add_post("/quitquitquit", quit)
    app.router.add_routes(private)
    return app


def stats_app(answers: Answers) -> web.Application:
    return _app(answers, "/metrics", "/stats/prometheus")


def readiness_app(answers: Answers) -> web.Application:
    async def ready(_: web.Request) -> web.Response:
        pending = answers.pending()
        if pending:
            return web.Response(status=500, text=f"not ready, pending: {', '.join(pending)}\n")
        return web.Response(text="ready\n")

    app = web.Application()
    app.router.add_get("/healthz/ready", ready)
    return app


def _app(answers: Answers, *metrics_paths: str) -> web.Application:
    async def metrics(request: web.Request) -> web.Response:
        headers = {"Content-Type": _PROMETHEUS}
        response = web.Response(body=await answers.metrics(), headers=headers, zlib_executor_size=_LARGE)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    app = web.Application()
    for path in metrics_paths:
        app.router.add_get(path, metrics)
    return app


async def serve(app: web.Application, *listeners: socket.socket) -> web.AppRunner:
    """Starts; the caller ends it with `cleanup()`."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    for listener in listeners:
        await web.SockSite(runner, listener).start()
    return runner


def extend_dump(dump: bytes, extra: Mapping[str, Any]) -> bytes:
    """Adds our keys to the core's JSON object without parsing it: it may be tens of megabytes."""
    head = dump.rstrip()[:-1].rstrip()
    comma = b"" if head.endswith(b"{") else b","
    return head + comma + _dumps(extra).encode()[1:]


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)
