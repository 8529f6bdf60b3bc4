"""RUN/controlplane.sock: what the control plane holds, refuses and has pushed, as JSON over HTTP. Read only."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from controlplane.translate.tunnel import Resources
from mesh import profiles
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.errors import OperatorError
from mesh.gen.authorization_pb2 import Authorization
from mesh.gen.workload_pb2 import Address

_MESSAGES: Final[dict[str, type[Message]]] = {ADDRESS_TYPE: Address, AUTHORIZATION_TYPE: Authorization}


def describe(resources: Resources) -> dict[str, Any]:
    """What is pushed, readable: by type and name."""
    return {
        type_url.rpartition("/")[2]: {
            name: {"version": item.version, **_readable(_parsed(type_url, item.data))}
            for name, item in sorted(named.items())
        }
        for type_url, named in resources.by_type.items()
    }


def _parsed(type_url: str, data: bytes) -> dict[str, Any]:
    message = _MESSAGES[type_url]()
    message.ParseFromString(data)
    return MessageToDict(message)


def _readable(value: Any, key: str = "") -> Any:
    """Addresses as text: protobuf's JSON writes bytes in base64."""
    if isinstance(value, dict):
        return {name: _readable(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_readable(inner, key) for inner in value]
    if key in ("address", "addresses") and isinstance(value, str):
        return str(ipaddress.ip_address(base64.b64decode(value)))
    return value


async def serve(
    path: Path,
    status: Callable[[], dict[str, Any]],
    resources: Callable[[], Resources],
    analysis: Callable[[], list[dict[str, Any]]],
) -> web.AppRunner:
    """Raises OperatorError: the socket cannot be made, or another control plane answers there."""

    async def show_status(_: web.Request) -> web.Response:
        return web.json_response(status())

    async def show_resources(_: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(describe, resources()))

    async def show_analysis(_: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(analysis))

    app = web.Application()
    app.add_routes(
        [
            web.get("/status", show_status),
            web.get("/resources", show_resources),
            web.get("/analysis", show_analysis),
            *(web.get(path, _profile(kind)) for path, kind in profiles.doors().items()),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, private_socket(path)).start()
    except OperatorError:
        await runner.cleanup()
        raise
    return runner


def _profile(kind: profiles.Kind) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def profile(request: web.Request) -> web.Response:
        try:
            body = await kind(request.query.get("seconds", "10"))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(body=body, content_type="application/octet-stream")

    return profile


def private_socket(path: Path) -> socket.socket:
    """A bound Unix socket, mode 0600 from its first moment. A socket that nobody listens on any more is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_room(path)
        _bind_private(listener, path)
    except OSError as error:
        listener.close()
        raise OperatorError(f"cannot be made: {error.strerror or error}", where=str(path)) from None
    return listener


def _bind_private(listener: socket.socket, path: Path) -> None:
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)


def _make_room(path: Path) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(None, "another process answers there")
