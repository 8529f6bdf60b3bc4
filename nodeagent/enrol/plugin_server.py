"""Door 1: the CNI plugin's requests over a Unix socket, per proto/enrol.schema.json. Owns the socket, no decision.

Only root may connect (mode 0600) and only root is answered (SO_PEERCRED), since an answer lets a pod start.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from mesh import log
from nodeagent.enrol.executor import TRY_AGAIN_LATER
from nodeagent.enrol.registry import CniError, Registry
from nodeagent.enrol.requests import (
    MAX_BODY_BYTES,
    parse_attachment,
    parse_container_id,
    parse_valid_attachments,
)
from nodeagent.sockets import listen_on, may_speak

_log: Final = log.get("plugin")

DECODING_FAILED: Final = 6
NOT_AVAILABLE: Final = 50
"""CNI error codes."""
SHUTDOWN_S: Final = 5.0
_PATIENCE_S: Final = 25.0
"""Less than the plugin's default timeout, so that it hears a reason."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PluginServer:
    """`is_ready` says whether an ADD would be served."""

    def __init__(self, registry: Registry, is_ready: Callable[[], bool]) -> None:
        self._registry, self._is_ready = registry, is_ready
        self._runner: web.AppRunner | None = None

    async def start(self, path: Path) -> None:
        """Raises OperatorError: the socket cannot be made, or another agent answers on it."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_only_root, _errors_are_answers])
        app.add_routes(
            [
                web.post("/cni/add", self._add),
                web.post("/cni/check", self._check),
                web.post("/cni/del", self._del),
                web.post("/cni/gc", self._gc),
                web.get("/cni/status", self._status),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        await web.SockSite(self._runner, listen_on(path, socket.SOCK_STREAM)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _add(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._registry.add(parse_attachment(await request.read()))
        except TimeoutError:
            raise CniError(TRY_AGAIN_LATER, f"enrolment is not finished after {_PATIENCE_S:.0f} s") from None
        return web.json_response({})

    async def _check(self, request: web.Request) -> web.Response:
        await self._registry.check(parse_attachment(await request.read()))
        return web.json_response({})

    async def _del(self, request: web.Request) -> web.Response:
        await self._registry.remove(parse_container_id(await request.read()))
        return web.json_response({})

    async def _gc(self, request: web.Request) -> web.Response:
        await self._registry.keep_only(parse_valid_attachments(await request.read()))
        return web.json_response({})

    async def _status(self, _: web.Request) -> web.Response:
        if not self._is_ready():
            raise CniError(NOT_AVAILABLE, "no tunnel is connected to the node agent")
        return web.json_response({})


@web.middleware
async def _only_root(request: web.Request, handler: Handler) -> web.StreamResponse:
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport is not None else None
    if peer is None or not may_speak(peer):
        _log.error("caller refused", path=request.path)
        return _error(403, CniError(100, "only root may ask the node agent"))
    return await handler(request)


@web.middleware
async def _errors_are_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except CniError as error:
        return _error(503, error)
    except ValueError as error:
        return _error(400, CniError(DECODING_FAILED, f"{request.path}: {error}"))
    except web.HTTPRequestEntityTooLarge:
        return _error(413, CniError(DECODING_FAILED, f"{request.path}: the body is larger than {MAX_BODY_BYTES} bytes"))
    except web.HTTPException as error:
        return _error(error.status, CniError(DECODING_FAILED, f"{request.method} {request.path}: {error.reason}"))


def _error(status: int, error: CniError) -> web.Response:
    return web.json_response({"code": error.code, "msg": error.msg}, status=status)
