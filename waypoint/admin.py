"""How a waypoint is asked: RUN/waypoint.sock for people and `meshctl`, metrics and readiness for machines.

Envoy's own admin interface is passed through under `/envoy/`; its metrics come out under Istio's names.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from mesh.errors import OperatorError, PeerError
from waypoint.envoy import Runner

# Envoy puts its own word before the names of the stats logger.
PREFIX: Final = b"envoy_istio_"
# Envoy's word for nothing is "-", Istio's for a party that is not known "unknown".
NOTHING: Final = re.compile(rb'((?:source|destination)_[a-z_]+=)"-?"')
METRICS: Final = "/stats/prometheus?usedonly&filter=istio"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(runner: Runner, status: Callable[[], dict[str, Any]], about: str) -> web.Application:
    async def show(_: web.Request) -> web.Response:
        return web.json_response({**status(), "ready": await runner.is_ready()})

    async def restart(_: web.Request) -> web.Response:
        try:
            await runner.restart()
        except PeerError as error:
            return web.json_response({"error": str(error)}, status=503)
        return web.json_response({"epoch": runner.current.number if runner.current else None})

    async def drain(_: web.Request) -> web.Response:
        await runner.drain()
        return web.json_response({"drained": True})

    async def pass_on(request: web.Request) -> web.Response:
        target = request.path_qs.removeprefix("/envoy")
        return await _envoy(runner, target, request.method)

    app = web.Application()
    app.add_routes(
        [
            web.get("/status", show),
            web.post("/restart", restart),
            web.post("/drain", drain),
            web.get("/metrics", metrics(runner, about)),
            web.route("*", "/envoy/{rest:.*}", pass_on),
        ]
    )
    return app


async def _envoy(runner: Runner, target: str, method: str = "GET") -> web.Response:
    if runner.current is None:
        return web.Response(status=503, text="Envoy is not running\n")
    try:
        status, body = await runner.current.ask(target, method)
    except PeerError as error:
        return web.Response(status=503, text=f"{error}\n")
    kind = "application/json" if body[:1] in (b"{", b"[") else "text/plain"
    return web.Response(status=status, body=body, content_type=kind)


def metrics(runner: Runner, about: str) -> Handler:
    """Envoy's under Istio's names, and `about`, which is ours."""

    async def answer(request: web.Request) -> web.StreamResponse:
        target = "/stats/prometheus?usedonly" if "all" in request.query else METRICS
        found = await _envoy(runner, target)
        body = found.body if isinstance(found.body, bytes) else b""
        body = NOTHING.sub(rb'\1"unknown"', body.replace(PREFIX, b"istio_"))
        if found.status == 200:
            body += about.encode()
        return web.Response(status=found.status, body=body, content_type="text/plain")

    return answer


def hystrix(runner: Runner) -> Handler:
    """Envoy's stream for a Hystrix dashboard, until either side has enough."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if runner.current is None:
            return web.Response(status=503, text="Envoy is not running\n")
        told = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await told.prepare(request)
        with suppress(PeerError, ConnectionResetError):
            async for part in runner.current.stream("/hystrix_event_stream"):
                await told.write(part)
        return told

    return answer


def readiness(runner: Runner) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        ready = await runner.is_ready()
        return web.Response(status=200 if ready else 503, text="ready\n" if ready else "not ready\n")

    return answer


def machines(handlers: Mapping[str, Handler]) -> web.Application:
    """These paths and nothing else, for everybody."""
    app = web.Application()
    app.add_routes([web.get(path, handler) for path, handler in handlers.items()])
    return app


async def serve_tcp(app: web.Application, address: tuple[str, int], where: str) -> web.AppRunner:
    """Raises OperatorError: the address cannot be taken."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, *address).start()
    except OSError as error:
        await runner.cleanup()
        raise OperatorError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}", where=where) from None
    return runner


async def serve_unix(app: web.Application, path: Path) -> web.AppRunner:
    """Mode 0600 from its first moment. Raises OperatorError: it cannot be made."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        await runner.cleanup()
        raise OperatorError(f"cannot be made: {error.strerror}", where=str(path)) from None
    finally:
        os.umask(mask)
    await web.SockSite(runner, listener).start()
    return runner
