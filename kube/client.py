"""Requests to the API server over HTTPS: lists, watches, patches. Owns the connections, no state of the cluster.

Every coroutine raises ApiError (it said no), Unreachable (it did not answer), or OperatorError (token or certificate
cannot be read).
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic

import aiohttp
import msgspec

from kube.access import Access
from kube.errors import ApiError, Unreachable, api_error
from kube.objects import Object, Resource, T
from kube.reflect import ListPage
from mesh.errors import PeerError

PAGE: Final = 500
MAX_BODY_BYTES: Final = 256 * 2**20
MAX_LINE_BYTES: Final = 16 * 2**20
REQUEST_S: Final = 30.0
LIST_S: Final = 120.0
CONNECT_S: Final = 10.0
# client-go's habit: watches end by themselves, and not all at once.
WATCH_S: Final = (300, 600)
WATCH_GRACE_S: Final = 30.0
# No object has such a name.
NOBODY: Final = "metadata.name=-"
BOOKMARK: Final = "BOOKMARK"
ERROR: Final = "ERROR"
JSON: Final = "application/json"


class Patch(StrEnum):
    """Media types."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"  # JSON is YAML


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str | None = None
    continue_: str | None = msgspec.field(default=None, name="continue")


class _List(msgspec.Struct, Generic[T]):
    items: list[T] | None = None
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)


class _Line(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""
    details: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: list[T]
    version: str
    token: str


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """`kind` BOOKMARK: only the version of `item` counts."""

    kind: str
    item: T


class Client:
    """Not for several event loops. `close` it."""

    def __init__(self, access: Access, user_agent: str = "nodemesh") -> None:
        self._access = access
        self._headers = {"Accept": JSON, "User-Agent": user_agent}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def list_page(self, resource: Resource[T], request: ListPage, selectors: Mapping[str, str]) -> Page[T]:
        query = {**selectors, "limit": str(PAGE)}
        if request.version is not None:
            query["resourceVersion"] = request.version
        if request.token:
            query["continue"] = request.token
        body = await self._send("GET", resource.path(), LIST_S, params=query)
        generic: Any = _List
        listed = _decode(generic[resource.shape], body)
        if not listed.metadata.resource_version:
            raise PeerError(f"the API server's list of {resource.plural} has no version to watch from")
        return Page(listed.items or [], listed.metadata.resource_version, listed.metadata.continue_ or "")

    async def require_reached(self, resource: Resource[Any], version: str) -> None:
        """Raises Expired: the server has never been at that version, so it would say nothing to who watches from it."""
        query = {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan", "fieldSelector": NOBODY}
        await self._send("GET", resource.path(), params=query)

    @asynccontextmanager
    async def watch(
        self, resource: Resource[T], version: str, selectors: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[Event[T]]]:
        """Events until the server ends it, which it does every few minutes. Raises also Expired, out of the stream."""
        ends_s = random.randint(*WATCH_S)
        query = {**selectors, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        query["timeoutSeconds"] = str(ends_s)
        async with self._request("GET", resource.path(), None, ends_s + WATCH_GRACE_S, params=query) as response:
            yield _events(resource, response.content)

    async def get(self, resource: Resource[T], namespace: str, name: str) -> T:
        """Raises NotFound."""
        found: T = _decode(resource.shape, await self._send("GET", resource.path(namespace, name)))
        return found

    async def create(self, resource: Resource[Any], namespace: str, body: Any) -> bytes:
        """Raises Conflict: it exists."""
        headers = {"Content-Type": JSON}
        return await self._send("POST", resource.path(namespace), data=msgspec.json.encode(body), headers=headers)

    async def patch(
        self,
        resource: Resource[Any],
        namespace: str,
        name: str,
        kind: Patch,
        body: Any,
        *,
        subresource: str = "",
        owner: str = "",
    ) -> None:
        """`owner`: the field manager, which server-side apply requires and lets win over every other."""
        query = {"fieldManager": owner} if owner else {}
        if kind is Patch.APPLY:
            query["force"] = "true"
        path = resource.path(namespace, name, subresource)
        headers = {"Content-Type": str(kind)}
        await self._send("PATCH", path, data=msgspec.json.encode(body), headers=headers, params=query)

    async def _send(self, method: str, path: str, total_s: float = REQUEST_S, **what: Any) -> bytes:
        async with self._request(method, path, total_s, total_s, **what) as response:
            return await _whole(response.content)

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, total_s: float | None, read_s: float, **what: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**self._headers, "Authorization": f"Bearer {self._access.token()}", **what.pop("headers", {})}
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S, sock_read=read_s)
        url = self._access.server + path
        context = self._access.context()
        try:
            async with self._opened().request(
                method, url, headers=headers, timeout=timeout, ssl=context, allow_redirects=False, **what
            ) as response:
                if response.status >= 300:
                    raise _refusal(f"{method} {path}", response, await _whole(response.content))
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{method} {path}: {_why(error)}") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, socket_factory=_socket)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


def _socket(address: Any) -> socket.socket:
    """With keep-alive: a watch may be silent for minutes, a peer that vanished must not go unnoticed as long."""
    made = socket.socket(address[0], address[1], address[2])
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


async def _whole(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for part in content.iter_any():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise PeerError(f"the API server's answer is larger than {MAX_BODY_BYTES >> 20} MiB")
    return bytes(body)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The rest after the last line break is no line: the stream broke off in it."""
    rest = b""
    async for part in content.iter_any():
        *lines, rest = (rest + part).split(b"\n") if b"\n" in part else (rest + part,)
        if len(rest) > MAX_LINE_BYTES:
            raise PeerError(f"an event of the API server is larger than {MAX_LINE_BYTES >> 20} MiB")
        for line in lines:
            if line.strip():
                yield line


async def _events(resource: Resource[T], content: aiohttp.StreamReader) -> AsyncIterator[Event[T]]:
    async for line in _lines(content):
        yield _event(resource, line)


def _event(resource: Resource[T], line: bytes) -> Event[T]:
    read = _decode(_Line, line)
    if read.type == ERROR:
        status = _decode(_Status, bytes(read.object))
        raise api_error(f"watch of {resource.plural}", status.code, status.message)
    shape: type[Any] = Object if read.type == BOOKMARK else resource.shape
    return Event(read.type, _decode(shape, bytes(read.object)))


def _decode(shape: type[Any], body: bytes) -> Any:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PeerError(f"the API server's answer is not understood: {error}") from None


def _refusal(what: str, response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    try:
        message = msgspec.json.decode(body, type=_Status).message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = body[:200].decode("utf-8", "replace")
    given = response.headers.get("Retry-After", "")
    retry_after_s = float(given) if given.isascii() and given.isdecimal() else 0.0
    return api_error(what, response.status, " ".join(message.split()) or response.reason or "no reason", retry_after_s)


def _why(error: Exception) -> str:
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__
